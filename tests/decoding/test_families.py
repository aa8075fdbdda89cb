"""Cached decoding of every family: what it scores is what teacher forcing scores."""

import jax
import numpy as np
import pytest

from prompt_tuning import decoding
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.testing import padded_tokens, rounding, tiny_config, tiny_gemma, tiny_model

LENGTH, BEAMS = 7, 3  # longer than the window


@pytest.mark.parametrize(
    "config", [pytest.param(tiny_config(), marks=pytest.mark.slow), tiny_gemma()], ids=type
)
def test_beams_have_the_scores_of_teacher_forcing(config):
    tuned = tiny_model(PromptTuning(3, initializer=Uniform()), config)
    inputs = padded_tokens((2, 7), config.vocab_size, seed=4)

    @jax.jit
    def run(params):
        step, cache = decoding.start(tuned.model, params, inputs, LENGTH)
        options = {"batch": len(inputs), "beams": BEAMS, "length": LENGTH, "alpha": 0.0}
        found = decoding.beam_search(step, cache, **options)
        return found, decoding.score(tuned.model, params, inputs, found.tokens)

    found, scores = run(tuned.params)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    bound = 2 * LENGTH * rounding.forward(config, 3 + 7, LENGTH) * np.abs(scores).max()
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=bound)
