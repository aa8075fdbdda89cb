"""T5X's own models of the golden `mini`, and training steps of T5X's own trainer."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from flax import core
from t5x import models, optimizers, train_state, trainer
from t5x.examples.scalable_t5 import network as scalable
from t5x.examples.t5 import network

from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.t5 import T5Config
from prompt_tuning.transformer.paths import flatten, unflatten

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "mini"
CONFIG = T5Config(96, 24, 4, 8, 40, 3, 2)
SHAPE = {
    "vocab_size": 96,
    "dtype": "float32",
    "emb_dim": 24,
    "num_heads": 4,
    "head_dim": 8,
    "num_encoder_layers": 3,
    "num_decoder_layers": 2,
    "mlp_dim": 40,
    "mlp_activations": ("gelu", "linear"),
    "logits_via_embedding": False,
}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def golden_batch() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The golden batch, and the prompt."""
    batch = golden("inputs")
    return batch, batch.pop("prompt")


def model(*, scanned: bool = False, dropout: float = 0.0, **changes: Any) -> Any:
    """A finished T5X model; `scanned` is `scalable_t5` with scanned layers."""
    shape = SHAPE | {"dropout_rate": dropout} | changes
    if scanned:
        shape |= {"scan_layers": True, "remat_policy": "minimal"}
    module = scalable if scanned else network
    vocabulary = seqio.PassThroughVocabulary(96, eos_id=1)
    return models.EncoderDecoderModel(
        module.Transformer(module.T5Config(**shape)),
        vocabulary,
        vocabulary,
        optimizers.sgd(0.1),
        z_loss=1e-4,
    )


def scanned_leaves(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The leaves of `scalable_t5`: heads apart, layers at axis 1, each with relative positions."""
    counts, out = {"encoder": 3, "decoder": 2}, {}
    for name, array in leaves.items():
        if re.search("ttention/(query|key|value)/kernel", name):
            array = array.reshape(24, 4, 8)
        elif re.search("ttention/out/kernel", name):
            array = array.reshape(4, 8, 24)
        out[name] = array
    for stack, count in counts.items():
        table = out.pop(f"{stack}/relpos_bias/rel_embedding")
        for i in range(count):
            out[f"{stack}/layers_{i}/relpos_bias/rel_embedding"] = table
        first = f"{stack}/layers_0/"
        for name in [name.removeprefix(first) for name in out if name.startswith(first)]:
            layers = [out.pop(f"{stack}/layers_{i}/{name}") for i in range(count)]
            out[f"{stack}/{stack}/{name}"] = np.stack(layers, axis=1)
    return out


def state_of(tuned: Any, leaves: dict[str, np.ndarray]) -> train_state.FlaxOptimTrainState:
    """A train state of T5X with these parameters, by path."""
    batch, _ = golden_batch()
    shapes = {name: array.shape for name, array in batch.items()}
    axes = jax.eval_shape(lambda: tuned.get_initial_variables(jax.random.PRNGKey(0), shapes))
    params = jax.tree.map(jnp.asarray, unflatten(leaves))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, core.unfreeze(axes["params"]))
    variables = {"params": params, "params_axes": core.unfreeze(axes["params_axes"])}
    return train_state.FlaxOptimTrainState.create(tuned.optimizer_def, core.freeze(variables))


def trained(
    tuned: Any,
    state: train_state.FlaxOptimTrainState,
    rates: list[float],
    *,
    num_microbatches: int | None = None,
) -> tuple[list[float], list[dict[str, np.ndarray]]]:
    """Steps of T5X's trainer on the golden batch: losses, and the parameters after each step."""
    batch, _ = golden_batch()
    step = jax.jit(
        functools.partial(trainer.train_with_lr, model=tuned, num_microbatches=num_microbatches)
    )
    losses, leaves = [], []
    for i, rate in enumerate(rates):
        state, metrics = step(
            state, batch, learning_rate=jnp.float32(rate), dropout_rng=jax.random.PRNGKey(i)
        )
        losses.append(float(metrics["loss"].compute()) if "loss" in metrics else np.nan)
        leaves.append(flatten(core.unfreeze(jax.tree.map(np.asarray, state.params))))
    return losses, leaves


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Paths of the leaves whose bits differ."""
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def leaves_of_mini(prompt: np.ndarray) -> dict[str, np.ndarray]:
    return golden("weights") | {PROMPT_PATH: prompt}
