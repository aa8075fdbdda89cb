"""A bank of prompts: what a row gets is its own task's prompt, whatever else is in the batch."""

import dataclasses

import jax
import numpy as np
import pytest
from numpy_prompts import BACKBONE, CONFIG, Alone, D, prompt

from prompt_tuning import decoding, families, sharding
from prompt_tuning.errors import UserError
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.sharding import Layout
from prompt_tuning.t5 import T5
from prompt_tuning.testing import rounding, tiny_config, tiny_gemma, tiny_model
from prompt_tuning.transformer.paths import join, unflatten

TARGETS = np.array([[7, 1, 0], [9, 5, 1], [4, 1, 0]], np.int32)
# Float32 against float64: log p of a target sums up to three logits' errors of 2e-5 (the tolerance
# of tests/t5/test_numpy_reference.py) and as many of their normalisers.
TOLERANCE = {"rtol": 0, "atol": 2 * 3 * 2e-5}
SCORE = jax.jit(decoding.score, static_argnums=0)


def layout(devices: int = 1, model: int = 1) -> Layout:
    return sharding.layout(model, devices=jax.devices()[:devices])


def tokens(*lengths: int, rows: int = 8, width: int = 12) -> np.ndarray:
    """Rows of random ids and an end token; missing rows are copies of the last one."""
    rng, array = np.random.default_rng(5), np.zeros((len(lengths), width), np.int32)
    for row, length in zip(array, lengths, strict=True):
        row[:length] = [*rng.integers(2, 64, length - 1), 1]
    return np.pad(array, ((0, rows - len(lengths)), (0, 0)), mode="edge")


def empty(capacity: int = 8, length: int = 7) -> PromptBank:
    """A bank with room for these tests, so that they share one program."""
    return PromptBank.empty(D, layout().mesh, capacity=capacity, length=length)


def alone(vectors: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Scores [K] of a row with a prompt in front."""
    ids = row[row > 0][:-1].tolist()
    return Alone(vectors).label_scores(ids, [[7], [9, 5], [4]])


def mixed(bank: PromptBank, rows: np.ndarray, slots: list[int]) -> np.ndarray:
    """Scores [len(slots), K] of rows in one batch."""
    params = join(BACKBONE, bank.leaves)
    places = np.pad(np.array(slots, np.int32), (0, len(rows) - len(slots)), mode="edge")
    return np.asarray(SCORE(T5(CONFIG, bank.sites), params, rows, TARGETS, places))[: len(slots)]


def test_prompts_of_any_length_act_as_alone():
    prompts = {str(n): [prompt(n)] for n in (5, 0, 2, 7)}
    bank, rows = empty().add(prompts), tokens(12, 3, 7, 1, 12)
    names = ["2", "7", "0", "5", "2"]
    scores = mixed(bank, rows, [bank.slots[name][0] for name in names])
    for name, row, row_scores in zip(names, rows, scores, strict=False):
        np.testing.assert_allclose(row_scores, alone(prompts[name][0], row), **TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [tiny_gemma(), pytest.param(tiny_config(), marks=pytest.mark.slow)],
    ids=["t5gemma", "t5"],
)
def test_in_every_family_a_prompt_acts_as_alone(config):
    """In a batch with others, in front of which there may be unused places."""
    config = dataclasses.replace(config, products="float32")
    backbone, layout_of_one = tiny_model(config=config), layout()
    prompts = {str(n): [prompt(n)] for n in (5, 2)}
    bank = PromptBank.empty(D, layout_of_one.mesh, capacity=2, length=7).add(prompts)
    rows, slots = tokens(12, 7, rows=2), np.array([bank.slots[n][0] for n in ("5", "2")], np.int32)
    model = families.model(config, bank.sites)
    scores = SCORE(model, join(backbone.params, bank.leaves), rows, TARGETS, slots)
    atol = 2 * 3 * rounding.forward(config, 7 + 12, 3) * np.abs(scores).max()
    for i, name in enumerate(("5", "2")):
        alone = families.model(config, PromptTuning(int(name), initializer=Uniform()))
        params = join(backbone.params, unflatten({PROMPT_PATH: prompts[name][0]}))
        wanted = SCORE(alone, params, rows[i : i + 1], TARGETS)
        np.testing.assert_allclose(scores[i : i + 1], wanted, rtol=0, atol=atol)


def test_a_misplaced_prompt_would_be_seen():
    """A short prompt before the free places, not after them, is farther from the tokens."""
    bank = empty().add({"a": [prompt(2)]})
    shifted = np.roll(np.asarray(bank.prompts), -5, axis=1)
    wrong = PromptBank(jax.device_put(shifted, bank.prompts.sharding), bank.lengths + 5, bank.slots)
    difference = np.abs(mixed(wrong, tokens(9), [0]) - alone(prompt(2), tokens(9)[0]))
    assert difference.max() > 1e-3


def test_a_bank_never_changes():
    first = empty(capacity=2, length=3).add({"a": [prompt(3)]})
    before = np.asarray(first.prompts).copy()
    second = first.add({"b": [prompt(3, 1)]})
    third = second.replace("a", [prompt(3, 2)]).remove("b")
    np.testing.assert_array_equal(first.prompts, before)
    assert (set(first.slots), set(second.slots), set(third.slots)) == ({"a"}, {"a", "b"}, {"a"})
    np.testing.assert_array_equal(third.prompts[third.slots["a"][0]], prompt(3, 2))
    np.testing.assert_array_equal(second.prompts[second.slots["a"][0]], prompt(3))


def test_room_grows_by_doubling_and_to_the_longest_prompt():
    bank = empty(capacity=2, length=4)
    sizes = []
    for i in range(5):
        bank = bank.add({str(i): [prompt(3, i)]})
        sizes.append(bank.prompts.shape[:2])
    assert sizes == [(2, 4), (2, 4), (4, 4), (4, 4), (8, 4)]
    bank = bank.add({"long": [prompt(6)]})
    assert bank.prompts.shape[:2] == (8, 6)
    for i in range(5):
        np.testing.assert_array_equal(bank.prompts[bank.slots[str(i)][0], 3:], prompt(3, i))
    np.testing.assert_array_equal(bank.prompts[bank.slots["long"][0]], prompt(6))


def test_slots_of_removed_tasks_are_used_again():
    bank = empty().add({"a": [prompt(2)], "b": [prompt(2, seed) for seed in range(1, 8)]})
    bank = bank.remove("b").add({"c": [prompt(1)], "d": [prompt(2, 4)]})
    assert bank.prompts.shape[0] == 8
    row = tokens(6)
    scores = mixed(bank, row, [bank.slots["c"][0]])
    np.testing.assert_allclose(scores[0], alone(prompt(1), row[0]), **TOLERANCE)


def nan() -> np.ndarray:
    return np.full((2, D), np.nan, np.float32)


@pytest.mark.parametrize(
    ("task", "vectors", "message"),
    [
        ("new", [nan()], "task 'new': the prompt contains values that are not finite"),
        (
            "new",
            [np.full((2, D), 1e300)],
            "task 'new': the prompt contains values that are not finite",
        ),
        ("new", [np.full((2, D), 1e19)], r"has values of up to 1e\+19, which overflow float32"),
        (3, [prompt(2)], "task 3: a name must be a text"),
        ("new", [prompt(2), nan()], "task 'new': the prompt contains values that are not finite"),
        ("new", [np.ones((2, D + 1), np.float32)], "is 17 wide, the backbone 16"),
        ("new", [np.ones(D, np.float32)], r"a matrix \[P, D\] of floats, not float32 \(16,\)"),
        ("new", [np.ones((2, D), np.int32)], "a matrix .* not int32"),
        ("new", [], "task 'new': has no prompt"),
        ("old", [prompt(2)], "task 'old': already exists; pass replace=True or remove it first"),
    ],
)
def test_what_does_not_fit_is_refused_whole(task, vectors, message):
    bank = empty().add({"old": [prompt(2)]})
    with pytest.raises(UserError, match=message):
        bank.add({"first": [prompt(1)], task: vectors})
    assert list(bank.slots) == ["old"]


def test_an_unknown_task_cannot_be_removed():
    with pytest.raises(UserError, match="no task 'x'; available: a"):
        empty().add({"a": [prompt(1)]}).remove("x")


def test_rows_must_name_their_tasks():
    bank = empty().add({"a": [prompt(1)]})
    model, params = T5(CONFIG, bank.sites), join(BACKBONE, bank.leaves)
    with pytest.raises(ValueError, match="name their tasks"):
        jax.eval_shape(lambda rows: decoding.score(model, params, rows, TARGETS), tokens(3))


@pytest.mark.parametrize("axis", ["data", "model"])
def test_a_divided_bank_gives_the_same(axis):
    prompts = {str(n): [prompt(n)] for n in (1, 2, 3, 4, 5, 6, 7)}
    rows, slots = tokens(12, 3, 7, 1, 12, 5, 2, 9), [6, 6, 5, 4, 3, 2, 1, 0]
    eight = layout(8, 2)
    divided = PromptBank.empty(D, eight.mesh, capacity=5, length=7, axis=axis).add(prompts)
    assert divided.prompts.shape[0] % eight.mesh.shape[axis] == 0
    assert not divided.prompts.sharding.is_fully_replicated
    params = join(jax.device_get(BACKBONE), divided.leaves)
    inputs = sharding.put_batch((rows, np.array(slots, np.int32)), eight)
    with sharding.on(eight):
        scores = SCORE(T5(CONFIG, divided.sites), params, inputs[0], TARGETS, inputs[1])
    for slot, row, row_scores in zip(slots, rows, np.asarray(scores), strict=True):
        np.testing.assert_allclose(row_scores, alone(prompt(slot + 1), row), **TOLERANCE)
