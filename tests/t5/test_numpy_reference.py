"""The model and the prompt's gradient against a second implementation: NumPy, float64, by hand."""

import jax
import numpy as np
import pytest
from numpy_t5 import CONFIG, NumpyT5, random_batch, random_leaves

from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.t5 import T5
from prompt_tuning.testing import rounding
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.step import loss_fn
from prompt_tuning.transformer.paths import unflatten

METHOD = PromptTuning(length=4)
MODEL = T5(CONFIG, METHOD)
Z_LOSS = 1e-4
BATCH = random_batch()
LENGTHS = 4 + 11, 6  # encoder positions, the prompt's too, and decoder positions
WEIGHTS = {"decoder_loss_weights": (BATCH["decoder_target_tokens"] > 0).astype(np.int32)}


class NumpyPrompt(NumpyT5):
    def prompt(self, stack, batch):
        return self.w[PROMPT_PATH] if stack == "encoder" else super().prompt(stack, batch)


@pytest.fixture(scope="module")
def leaves() -> dict[str, np.ndarray]:
    return random_leaves(METHOD)


def test_logits(leaves):
    ours = jax.jit(MODEL.apply)({"params": unflatten(leaves)}, **BATCH)
    reference = NumpyPrompt(leaves).logits(BATCH)
    assert np.abs(reference).max() > 1  # not all near zero, where any two models agree
    atol = rounding.forward(CONFIG, *LENGTHS) * np.abs(reference).max()
    np.testing.assert_allclose(ours, reference, rtol=0, atol=atol)


def test_prompt_gradient_by_finite_differences(leaves):
    def loss(prompt):
        params = unflatten(leaves | {PROMPT_PATH: prompt})
        return loss_fn(MODEL, Loss(z_loss=Z_LOSS), params, BATCH | WEIGHTS, None)[0]

    def reference(prompt) -> float:
        return NumpyPrompt(leaves | {PROMPT_PATH: prompt}).loss(BATCH, Z_LOSS)

    prompt = leaves[PROMPT_PATH].astype(np.float64)
    value, gradient = jax.jit(jax.value_and_grad(loss))(leaves[PROMPT_PATH])
    np.testing.assert_allclose(value, reference(prompt), rtol=rounding.forward(CONFIG, *LENGTHS))
    atol = rounding.backward(CONFIG, *LENGTHS) * np.abs(gradient).max()
    for row, column in [(0, 0), (0, 9), (1, 4), (2, 7), (3, 2), (3, 9)]:
        step = np.zeros_like(prompt)
        step[row, column] = 1e-5
        above, below = (reference(prompt + sign * step) for sign in (1, -1))
        np.testing.assert_allclose(gradient[row, column], (above - below) / 2e-5, rtol=0, atol=atol)
