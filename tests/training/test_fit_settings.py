"""Checks of the settings of training."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.data.batching.packing import pack
from prompt_tuning.errors import UserError
from prompt_tuning.methods import PromptTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.testing import random_batch, tiny_model
from prompt_tuning.training import host_batches, loop
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"optimizer": optax.sgd(0.1)},
            r"OPTIMIZER = GradientTransformation\w*\(\.\.\.\): must be",
        ),
        ({"optimizer": "adafactor"}, r"OPTIMIZER = str\(\.\.\.\): must be a function from the"),
        ({"optimizer": None}, r"OPTIMIZER = NoneType\(\.\.\.\): must be a function"),
        ({"optimizer": lambda rate: rate}, "OPTIMIZER: the function returned 0.3; must return an"),
        ({"learning_rate": optax.sgd}, "LEARNING_RATE: the function returned a Gradient"),
        ({"learning_rate": lambda step: None}, "LEARNING_RATE: the function returned a NoneType"),
        ({"learning_rate": lambda step: [0.3]}, "LEARNING_RATE: the function returned a list"),
        ({"learning_rate": lambda step: np.ones(2)}, "LEARNING_RATE: the function returned a nda"),
        ({"learning_rate": lambda step: 0.3}, ""),
        ({"learning_rate": lambda step: np.float32(0.3)}, ""),
        ({"learning_rate": optax.linear_schedule(0.3, 0, 9), "optimizer": optax.adamw}, ""),
    ],
)
def test_functions_of_another_kind(fields, message):
    split = ParamSplit({}, frozenset(), frozenset("a"))
    if not message:
        Fit(total_steps=2, **fields).transformation(split)
        return
    with pytest.raises(UserError, match=f"^{message}") as error:
        Fit(total_steps=2, **fields).transformation(split)
    assert "\n" not in str(error.value)


BATCH = random_batch()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda start: iter([BATCH] * 2), "TRAIN_STEPS = 3: the batches end after 2 steps; give"),
        (lambda start: [BATCH], "TRAIN_STEPS = 3: the batches end after 1 steps"),
        (lambda start: [], "TRAIN_STEPS = 3: the batches end after 0 steps"),
        ([BATCH], "batches: must be a function .* not of type list$"),
        (iter([BATCH]), "batches: must be a function .* not of type list_iterator$"),
        (lambda start: None, "batches: must be .* not of type function to NoneType$"),
        (lambda start: [{"inputs": 1}], "batches: a batch lacks encoder_input_tokens, decoder_inp"),
        (lambda start: BATCH, "batches: a batch is of type str; must be a dict"),
    ],
)
def test_batches_that_end_or_are_none(batches, message, tmp_path, monkeypatch):
    def step(self, state, *_):  # nothing is compiled
        return state, {}

    monkeypatch.setattr(loop._Loop, "_compiled", lambda self, optimizer: functools.partial(step, 0))
    monkeypatch.setattr(loop.TrainLog, "add", lambda *_: None)
    with pytest.raises(UserError, match=f"^{message}") as error:
        loop.fit(tiny_model(PromptTuning(2)), model_dir=tmp_path, total_steps=3, batches=batches)
    assert "\n" not in str(error.value)


_IDS, _INPUTS, _TARGETS = (
    f"{name}_tokens" for name in ("encoder_input", "decoder_input", "decoder_target")
)
_ONES = np.ones_like(BATCH[_TARGETS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({_IDS: BATCH[_IDS].astype(np.float32)}, "encoder_input_tokens is float32 .*; must be an"),
        ({_IDS: BATCH[_IDS].tolist()}, "encoder_input_tokens is a list; must be an array of whole"),
        ({_IDS: BATCH[_IDS][0]}, r"encoder_input_tokens is int32 \(7,\); must be"),
        ({_IDS: BATCH[_IDS][:0]}, r"encoder_input_tokens is int32 \(0, 7\); must be"),
        ({_IDS: BATCH[_IDS][:3]}, "must have equally many rows, and those of the decoder one"),
        ({_INPUTS: BATCH[_INPUTS][:, :2]}, "must have equally many rows, and those of the decoder"),
        ({"decoder_loss_weight": _ONES}, "a batch has 'decoder_loss_weight', which is not read"),
        (
            {"decoder_loss_weights": _ONES[:, :1]},
            r"decoder_loss_weights \(8, 1\): must have the sh",
        ),
        ({"decoder_loss_weights": 0 * _ONES}, "a batch has no target that counts"),
        ({"decoder_loss_weights": -1 * _ONES}, "decoder_loss_weights: must be finite numbers from"),
        ({"decoder_loss_weights": np.nan * _ONES}, "decoder_loss_weights: must be finite numbers"),
        ({_TARGETS: 0 * _ONES}, "a batch has no target that counts"),
        ({_INPUTS: BATCH[_TARGETS]}, "decoder_input_tokens are decoder_target_tokens, which give"),
        ({_INPUTS: jnp.asarray(BATCH[_TARGETS])}, "decoder_input_tokens are decoder_target_tokens"),
        ({"idx": np.arange(8)}, ""),
        ({_IDS: jnp.asarray(BATCH[_IDS])}, ""),
        ({"decoder_loss_weights": 0.5 * _ONES}, ""),
    ],
)
def test_batches_that_teach_nothing(change, message):
    batches = functools.partial(host_batches.batches_from, lambda start: [BATCH | change])
    if not message:
        assert len(list(batches(0))) == 1
        return
    with pytest.raises(UserError, match=f"^batches: .*{message}") as error:
        next(batches(0))
    assert "\n" not in str(error.value)


ROWS = [[([5, 6, 1], [7, 1]), ([8, 1], [9, 1])], [([5, 1], [7, 8, 1])]]
PACKED = {P: pack(ROWS, prompt_length=P, input_length=12, target_length=8) for P in (0, 2, 3)}
NO_SEGMENTS, NO_POSITIONS = "encoder_segment_ids", "encoder_positions"


@pytest.mark.parametrize(
    ("places", "packed", "without", "message"),
    [
        (2, 0, (), "has tokens where the prompt is; leave its first 2 places 0"),
        (3, 2, (), "has tokens where the prompt is; leave its first 3 places 0"),
        (2, 2, (), ""),
        (2, 3, (), ""),  # one place more is one of padding
        (0, 0, (), ""),
        (0, 0, (NO_POSITIONS,), ""),  # the backbone's positions are relative
        (2, 2, (NO_POSITIONS,), "packed examples need encoder_segment_ids and encoder_positions"),
        (2, 2, (NO_SEGMENTS,), "packed examples need encoder_segment_ids and encoder_positions"),
        (2, 2, (NO_SEGMENTS, NO_POSITIONS), ""),
        (None, 0, (), "in front of which this method has no places"),
        (None, 0, (NO_POSITIONS,), "in front of which this method has no places"),
    ],
)
def test_packed_batches_without_room_for_the_prompt(places, packed, without, message):
    batch = {name: value for name, value in PACKED[packed].items() if name not in without}
    if not message:
        assert host_batches.check_packing(batch, places) is batch
        return
    with pytest.raises(UserError, match=f"^batches: .*{message}"):
        host_batches.check_packing(batch, places)


def test_training_looks_at_packed_batches(tmp_path):
    with pytest.raises(UserError, match="leave its first 2 places 0"):
        loop.fit(
            tiny_model(PromptTuning(2)),
            model_dir=tmp_path,
            total_steps=1,
            batches=lambda start: [PACKED[0]],
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"x": {1}}}, "settings: must be JSON values"),
        ({"evaluators": print}, "evaluators = .*: must be a list of functions"),
        ({"evaluators": [None]}, "evaluators = .*: must be a list of functions"),
        ({"model_dir": ""}, "model_dir is empty: name a folder"),
    ],
)
def test_arguments_of_another_type(arguments, message, tmp_path):
    given = {"model_dir": tmp_path, "batches": lambda start: [BATCH]} | arguments
    with pytest.raises(UserError, match=f"^{message}"):
        loop.fit(tiny_model(PromptTuning(2)), total_steps=1, **given)
    assert not list(tmp_path.iterdir())
