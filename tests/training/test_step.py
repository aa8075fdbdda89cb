"""The train step: parts of a batch, and what it may not do."""

import jax
import numpy as np
import optax
import pytest

from prompt_tuning.methods import PromptTuning, Uniform, Wayward
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5 import T5
from prompt_tuning.testing import random_leaves, tiny_config
from prompt_tuning.training.loss import NORMALIZERS, Loss
from prompt_tuning.training.optim import only_trained
from prompt_tuning.training.step import TrainState, make_train_step
from prompt_tuning.transformer.paths import unflatten

CONFIG = tiny_config(num_encoder_layers=1, dropout_rate=0.1)
PROMPT = PromptTuning(3, initializer=Uniform())
OPTIMIZER = optax.sgd(0.1)


def batch() -> dict[str, np.ndarray]:
    """Rows of different lengths: the parts of a batch differ in their number of targets."""
    rng = np.random.default_rng(1)
    targets = rng.integers(3, 64, (8, 4), np.int32)
    targets[np.arange(4) >= rng.integers(1, 5, (8, 1))] = 0
    return {
        "encoder_input_tokens": rng.integers(3, 64, (8, 6), np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


def stepped(method, loss: Loss, parts: int, rows=None, key=None):
    split = ParamSplit.of(CONFIG, method)
    trained, frozen = split.split(unflatten(random_leaves(split.shapes)))
    optimizer = only_trained(OPTIMIZER, split)
    step = jax.jit(make_train_step(T5(CONFIG, method), split, optimizer, loss, parts))
    return step(TrainState.create(trained, optimizer), frozen, rows or batch(), key)


@pytest.mark.parametrize(
    ("factor", "parts"),
    [
        ("AVERAGE_PER_SEQUENCE", 2),
        *(
            pytest.param(factor, 2, marks=pytest.mark.slow)
            for factor in (None, 64.0, *NORMALIZERS)
            if factor != "AVERAGE_PER_SEQUENCE"
        ),
        pytest.param(None, 8, marks=pytest.mark.slow),
    ],
)
def test_parts_of_a_batch_add_up_to_it(factor, parts):
    loss = Loss(normalizing_factor=factor)
    whole, metrics = stepped(PROMPT, loss, 1)
    state, actual = stepped(PROMPT, loss, parts)
    assert actual.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_a_penalty_counts_once():
    method = Wayward(3, initializer=Uniform(), text="a text", token_ids=[5, 9])
    whole, metrics = stepped(method, Loss(), 1)
    state, actual = stepped(method, Loss(), 4)
    np.testing.assert_allclose(actual["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(*jax.tree.leaves((whole.trained, state.trained)), rtol=1e-5)


def test_parts_drop_out_by_themselves():
    """Each part has a mask of its own: a batch of one row four times gives four losses."""
    rows = {name: np.repeat(row[:1], 4, axis=0) for name, row in batch().items()}
    one = {name: row[:1] for name, row in rows.items()}
    key = jax.random.key(0)
    _, four = stepped(PROMPT, Loss(), 4, rows, key)
    _, single = stepped(PROMPT, Loss(), 1, one, key)
    assert not np.isclose(four["loss"], 4 * single["loss"], rtol=1e-4)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_transfers_nothing(parts):
    """What it reads is on the device before, and nothing comes back unasked."""
    split = ParamSplit.of(CONFIG, PROMPT)
    placed = jax.device_put(split.split(unflatten(random_leaves(split.shapes))))
    optimizer = only_trained(OPTIMIZER, split)
    step = jax.jit(make_train_step(T5(CONFIG, PROMPT), split, optimizer, Loss(), parts))
    state, rows = jax.device_put((TrainState.create(placed[0], optimizer), batch()))
    key = jax.random.key(0)
    with jax.transfer_guard("disallow"):
        state, metrics = step(state, placed[1], rows, key)
        step(state, placed[1], rows, key)
    assert np.isfinite(metrics["loss"])
    assert step._cache_size() == 1
