"""Checks of the settings of training."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.training.loop import Fit


@pytest.mark.parametrize("steps", [1_100_000, 1_130_000])
def test_steps_that_include_pre_training_as_in_t5x_are_refused(steps):
    message = rf"TRAIN_STEPS = {steps}: must be below 1100000; .* T5X's TRAIN_STEPS includes"
    with pytest.raises(UserError, match=message) as error:
        Fit(total_steps=steps)
    assert "\n" not in str(error.value)


def test_the_steps_of_the_paper_are_possible():
    Fit(total_steps=30_000)


@pytest.mark.parametrize(
    ("field", "macro"),
    [
        ("total_steps", "TRAIN_STEPS"),
        ("num_microbatches", "NUM_MICROBATCHES"),
        ("eval_period", "EVAL_PERIOD"),
        ("checkpoint_period", "CHECKPOINT_PERIOD"),
        ("log_period", "LOG_PERIOD"),
        ("keep", "CHECKPOINT_KEEP"),
    ],
)
def test_a_number_below_one_is_named_by_its_macro(field, macro):
    with pytest.raises(UserError, match=f"^{macro} = 0: must be a whole number from 1 to"):
        Fit(**{"total_steps": 2, field: 0})


@pytest.mark.parametrize("rate", [0, -0.3, float("nan"), float("inf"), "0.3", True, None])
def test_a_learning_rate_is_a_number_above_0(rate):
    with pytest.raises(UserError, match=r"^LEARNING_RATE = .*: must be (above 0|a finite number)"):
        Fit(total_steps=2, learning_rate=rate)


def test_the_kinds_of_learning_rate():
    for rate in (1, 0.3, np.float32(0.3), jnp.asarray(0.3), optax.constant_schedule(0.3)):
        assert Fit(total_steps=2, learning_rate=rate).learning_rate is rate
