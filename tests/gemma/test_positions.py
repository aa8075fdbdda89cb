"""Windows and rotary positions, as a prompt in front meets them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from prompt_tuning.gemma import PRESETS
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.testing import tiny_model
from prompt_tuning.transformer.paths import flatten, unflatten

NANO = dataclasses.replace(PRESETS["t5gemma_nano"], products="float32")
PROMPT, WINDOW = 2, 2
TOKENS = np.full((1, 9), 5, np.int32)


def reached(windowed: tuple[bool, ...]) -> np.ndarray:
    """Which tokens' encoder states depend on the prompt, [9] bool; two layers."""
    encoder = dataclasses.replace(NANO.encoder, window=WINDOW, windowed=windowed)
    config = dataclasses.replace(NANO, encoder=encoder)
    tuned = tiny_model(PromptTuning(PROMPT, initializer=Uniform()), config)
    leaves = flatten(tuned.params)

    def states(prompt):
        params = unflatten(leaves | {PROMPT_PATH: prompt})
        encode = functools.partial(tuned.model.apply, method=tuned.model.encode)
        return encode({"params": params}, TOKENS).states[0, PROMPT:].sum(-1)

    return np.abs(jax.jit(jax.jacobian(states))(leaves[PROMPT_PATH])).sum((1, 2)) > 0


@pytest.mark.parametrize(
    ("windowed", "furthest"),
    [
        # Token t is t + 1 positions from the last vector; each layer carries it a window further.
        ((True, True), 2 * WINDOW - 1),
        ((True, False), 8),
        pytest.param((False, True), 8, marks=pytest.mark.slow),
    ],
)
def test_a_prompt_is_seen_beyond_the_window_only_through_full_layers(windowed, furthest):
    np.testing.assert_array_equal(reached(windowed), np.arange(9) <= furthest)
