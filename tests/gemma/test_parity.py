"""T5Gemma against transformers' own, on random tiny models (benchmarks/gemma_arrays.py)."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, families, sharding
from prompt_tuning.methods import Method, PromptTuning, Uniform
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.step import loss_fn
from prompt_tuning.transformer.paths import flatten, unflatten

FOLDER = Path(__file__).parents[1] / "fixtures" / "gemma"
MODELS = ("grouped", "unequal", "uncapped")
PROMPTS = (0, 5, 20)
# Both sum in float32, in other orders.
MEAN = Loss(z_loss=0.0, normalizing_factor="NUM_REAL_TARGET_TOKENS")
CLOSE = {"rtol": 0, "atol": 2e-5}


@functools.cache
def theirs(model: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / model / "arrays.npz") as arrays:
        return dict(arrays)


@functools.cache
def loaded(model: str, prompt: int) -> TunedModel:
    method = PromptTuning(prompt, initializer=Uniform()) if prompt else Method()
    layout = sharding.layout(devices=jax.devices()[:1])
    folder = FOLDER / model
    config = families.preset(str(folder), products="float32")
    return initialize(config, method, layout=layout, checkpoint=folder)


def params(model: str, prompt: int) -> dict:
    leaves = flatten(loaded(model, prompt).params)
    if prompt:
        leaves[PROMPT_PATH] = jnp.asarray(theirs(model)[f"prompt_{prompt}"])
    return unflatten(leaves)


def batch(model: str) -> dict[str, np.ndarray]:
    arrays = theirs(model)
    targets = arrays["targets"].astype(np.int32)
    return {
        "encoder_input_tokens": arrays["inputs"].astype(np.int32),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    }


# Each compiles for a second or two; the others differ from these by shapes and settings alone.
FAST = {("grouped", 5), ("unequal", 20)}
CASES = pytest.mark.parametrize(
    ("model", "prompt"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in itertools.product(MODELS, PROMPTS)
    ],
)


@CASES
def test_states_logits_loss_and_gradient(model, prompt):
    tuned, data, arrays = loaded(model, prompt), batch(model), theirs(model)
    real = data["decoder_target_tokens"] > 0

    @jax.jit
    def run(params):
        apply = functools.partial(tuned.model.apply, {"params": params})
        encoded = apply(data["encoder_input_tokens"], method=tuned.model.encode)
        logits = apply(**data)
        loss, gradient = jax.value_and_grad(
            lambda leaves: loss_fn(tuned.model, MEAN, leaves, data, None)[0]
        )(params)
        return encoded.states, logits, loss, gradient

    states, logits, loss, gradient = run(params(model, prompt))
    np.testing.assert_allclose(states, arrays[f"states_{prompt}"], **CLOSE)
    np.testing.assert_allclose(np.asarray(logits)[real], arrays[f"logits_{prompt}"][real], **CLOSE)
    np.testing.assert_allclose(loss, arrays[f"loss_{prompt}"], **CLOSE)
    if prompt:
        wanted = arrays[f"gradient_{prompt}"]
        atol = CLOSE["atol"] * max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(flatten(gradient)[PROMPT_PATH], wanted, rtol=0, atol=atol)


@CASES
def test_greedy_tokens(model, prompt):
    """Up to each row's end token; ours are from the cache, theirs from whole passes."""
    tuned, arrays = loaded(model, prompt), theirs(model)
    tokens = jnp.asarray(batch(model)["encoder_input_tokens"])
    wanted = arrays[f"greedy_{prompt}"]
    step, cache = decoding.start(tuned.model, params(model, prompt), tokens, wanted.shape[1])
    decoded = jax.jit(
        lambda cache: decoding.decode(
            step, cache, batch=len(tokens), length=wanted.shape[1], stops=(63,)
        )
    )(cache)
    np.testing.assert_array_equal(decoded.tokens, wanted)
