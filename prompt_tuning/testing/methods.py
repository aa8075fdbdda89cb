"""The contract of a tuning method."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning import decoding, families, sharding
from prompt_tuning.families import init_shapes
from prompt_tuning.methods import Method, ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.testing import rounding
from prompt_tuning.testing.models import padded_tokens, random_batch, tiny_config, tiny_model
from prompt_tuning.training.loop import create_state
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import only_trained
from prompt_tuning.training.step import make_train_step
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.network import EncoderDecoder
from prompt_tuning.transformer.paths import Params, flatten, unflatten
from prompt_tuning.transformer.sites import Sites


def check_method(method: Method, config: Config | None = None) -> None:
    """Asserts what the trainer, the checkpoints and the decoders rely on.

    - It is hashable, and equal to itself made again, since it is a static argument of what is
      compiled.
    - The backbone's leaves keep their paths and shapes.
    - Two steps of gradient descent move every trained leaf and no other one.
    - The optimizer has state for trained leaves only.
    - Its leaves change the logits.
    - Cached greedy decoding writes what teacher forcing predicts.
    - What it folds into, and the backbone that it merges into, predict the same, if it does either.

    Args:
      method: Tuning method with all that `for_task` would fill in.
      config: Shape of the backbone; None for `tiny_config()`.

    Raises:
      AssertionError: naming the leaf or the property.
    """
    config = config or tiny_config()
    again = dataclasses.replace(method)
    assert (hash(again), again) == (hash(method), method), "not a frozen, hashable dataclass"
    backbone = ParamSplit.of(config, ModelTuning()).shapes
    split = ParamSplit.of(config, method)
    assert split.backbone == frozenset(backbone), "the backbone's paths have changed"
    for path in split.backbone:
        assert split.shapes[path] == backbone[path], f"{path}: shape of a backbone leaf has changed"
    assert split.trained, "no leaf is trained"

    tuned = tiny_model(method, config)
    trained, frozen = (
        {path: np.array(leaf) for path, leaf in flatten(half).items()}
        for half in (tuned.trained, tuned.frozen)
    )
    transform = only_trained(optax.sgd(0.05), split)
    step = jax.jit(make_train_step(tuned.model, split, transform, Loss()))
    with sharding.on(tuned.layout):
        state = create_state(tuned, transform)
        for seed in range(2):  # LoRA's first factor moves once its second one is not zero
            batch = random_batch(seed, vocab_size=config.vocab_size)
            state, _ = step(state, tuned.frozen, sharding.put_batch(batch, tuned.layout), None)
    for path, leaf in flatten(state.trained).items():
        assert np.isfinite(leaf).all(), f"{path}: not finite after two steps"
        assert not np.array_equal(leaf, trained[path]), f"{path}: trained, but has not moved"
    for path, leaf in flatten(tuned.frozen).items():
        np.testing.assert_array_equal(leaf, frozen[path], f"{path}: frozen, but has moved")

    slots = jax.eval_shape(only_trained(optax.adam(0.1), split).init, tuned.trained)
    sizes = sorted(leaf.shape for leaf in jax.tree.leaves(slots) if leaf.ndim)
    wanted = sorted(2 * [leaf.shape for leaf in trained.values() if leaf.ndim])
    assert sizes == wanted, "the optimizer's state is not that of the trained leaves"

    inputs = padded_tokens((4, 7), config.vocab_size, seed=11)
    greedy = jax.jit(lambda params: decoding.greedy(tuned.model, params, jnp.asarray(inputs), 6))
    written = np.asarray(greedy(tuned.params))
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(written, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": np.maximum(written, 1),
    }
    forced = logits(tuned.model, tuned.params, batch)
    real = np.cumprod(written > 0, axis=1) > 0  # a generated padding token ends a row
    np.testing.assert_array_equal(
        np.argmax(forced, axis=-1)[real], written[real], "cached decoding differs"
    )

    leaves = {path: np.asarray(leaf) for path, leaf in flatten(tuned.params).items()}
    bound = rounding.forward(config, inputs.shape[1] + 16, 6) * np.abs(forced).max()
    plain = {path: leaves[path] for path in split.backbone}
    effect = np.abs(logits(families.model(config), unflatten(plain), batch) - forced).max()
    if split.added:
        assert effect > 100 * bound, "the added leaves do not change the logits"
    for name, after, convert in (
        ("folded", method.folded(), functools.partial(method.fold, config=config)),
        ("merged", Sites(), method.merge),
    ):
        if after == method or not (converted := _converted(convert, leaves)):
            continue
        paths = flatten(nn.unbox(init_shapes(config, after))).keys()
        assert converted.keys() == paths, f"the {name} leaves are not the model's"
        predicted = logits(families.model(config, after), unflatten(converted), batch)
        # Far above rounding, far below what leaving out or doubling a leaf would do.
        np.testing.assert_allclose(predicted, forced, rtol=0, atol=1e-2 * effect, err_msg=name)


@functools.partial(jax.jit, static_argnums=0)
def logits(model: EncoderDecoder, params: Params, batch: Mapping[str, Any]) -> jax.Array:
    """Teacher-forced logits [B, L, V] of a batch; compiled once per model and shape."""
    return cast(jax.Array, model.apply({"params": params}, **batch))


def _converted(convert: Callable[..., dict], leaves: Mapping[str, np.ndarray]) -> dict:
    try:
        return convert(leaves)
    except ValueError:  # as `fold` and `merge` say that nothing else predicts the same
        return {}
