"""Learning-rate schedules against T5X's."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.training.schedules import FACTORS, schedule

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "units" / "lr_schedules.npz"

SETTINGS = {
    "constant_0.3": {},
    "finetune_0.001": {"base_learning_rate": 0.001},
    "pretrain": {
        "factors": "constant * rsqrt_decay",
        "base_learning_rate": 1.0,
        "warmup_steps": 10_000,
    },
    "default": {
        "factors": "constant * linear_warmup * rsqrt_decay",
        "base_learning_rate": 0.5,
    },
    "warmup": {"factors": "constant * linear_warmup"},
    "rsqrt_normalized": {"factors": "constant * linear_warmup * rsqrt_normalized_decay"},
    "cosine": {"factors": "constant * cosine_decay", "steps_per_cycle": 20_000},
    "decay_every": {"factors": "constant * decay_every", "steps_per_decay": 1_000},
    "linear_decay": {"factors": "linear_decay", "decay_factor": 0.0001},
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def test_all_golden_settings_are_tested(golden):
    assert {*SETTINGS, "steps"} == golden.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_t5x_on_python_ints(golden, name):
    rate = schedule(**SETTINGS[name])
    rates = np.array([rate(int(step)) for step in golden["steps"]])
    np.testing.assert_allclose(rates, golden[name], rtol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_t5x_under_jit(golden, name):
    rate = jax.jit(schedule(**SETTINGS[name]))
    rates = [rate(jnp.int32(step)) for step in golden["steps"]]
    assert all(r.shape == () and r.dtype == jnp.float32 for r in rates)
    np.testing.assert_allclose(np.array(rates), golden[name], rtol=1e-6)


@pytest.mark.parametrize("name", FACTORS)
def test_each_factor_alone_is_a_finite_float32_scalar(name):
    for step in (0, 1, 1_000, 1_100_000):
        rate = schedule(name)(step)
        assert rate.shape == () and rate.dtype == jnp.float32
        assert np.isfinite(rate) and rate > 0


def test_spaces_around_the_star_do_not_matter():
    assert schedule("constant*linear_warmup")(7) == schedule(" constant  *  linear_warmup ")(7)


def test_step_offset_moves_the_start():
    warmup = "constant * linear_warmup"
    moved = schedule(warmup, step_offset=500)
    assert moved(1_000) == schedule(warmup)(500)
    assert moved(0) == moved(500) == np.float32(1e-8)


def test_never_below_the_minimum():
    rate = schedule("constant * decay_every", steps_per_decay=1, min_learning_rate=0.01)
    np.testing.assert_allclose(rate(100), 0.01)


def test_cosine_needs_no_warmup():
    rate = schedule("constant * cosine_decay", warmup_steps=0, steps_per_cycle=100)
    np.testing.assert_allclose(rate(0), 0.3, rtol=1e-6)
    np.testing.assert_allclose(rate(50), 0.15, rtol=1e-6)


def test_optax_takes_it():
    params = jnp.zeros(())
    optimizer = optax.sgd(schedule("constant * linear_warmup", warmup_steps=2))

    @jax.jit
    def update(state):
        return optimizer.update(jnp.ones(()), state, params)

    state, updates = optimizer.init(params), []
    for _ in range(4):
        change, state = update(state)
        updates.append(change)
    np.testing.assert_allclose(np.array(updates), [-1e-8, -0.15, -0.3, -0.3], rtol=1e-6)


@pytest.mark.parametrize(
    "factors", ["constant * cosine", "", "constant *", "constant, rsqrt_decay"]
)
def test_an_unknown_factor_is_an_error_that_lists_the_known(factors):
    with pytest.raises(ValueError, match=re.escape(", ".join(FACTORS))):
        schedule(factors)


@pytest.mark.parametrize("steps", [0, -3, float("nan")])
@pytest.mark.parametrize(
    ("name", "setting"),
    [("decay_every", "steps_per_decay"), ("cosine_decay", "steps_per_cycle")],
)
def test_periods_of_no_steps_are_errors(name, setting, steps):
    with pytest.raises(ValueError, match=f"{setting} = {steps}: {name} needs at least 1"):
        schedule(f"constant * {name}", **{setting: steps})


@pytest.mark.parametrize("name", ["linear_warmup", "linear_decay", "rsqrt_decay"])
def test_warmup_of_no_steps_is_an_error(name):
    with pytest.raises(ValueError, match="warmup_steps = 0"):
        schedule(name, warmup_steps=0)
