"""A bank of prompts: what a row gets is its own task's prompt, whatever else is in the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, sharding
from prompt_tuning.errors import UserError
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.tuned import initialize
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.sharding import Layout
from prompt_tuning.t5 import T5, T5Config
from prompt_tuning.t5.paths import flatten, join, unflatten

CONFIG = T5Config(64, 16, 2, 8, 32, 2, 1, relative_buckets=8, relative_max_distance=12)
D = CONFIG.d_model
TARGETS = np.array([[7, 1, 0], [9, 5, 1], [4, 1, 0]], np.int32)


def layout(devices: int = 1, model: int = 1) -> Layout:
    return sharding.layout(model, devices=jax.devices()[:devices])


@functools.cache
def backbone() -> dict:
    return initialize(CONFIG, PromptTuning(1), layout=layout(), seed=3).frozen


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([length, seed]).normal(size=(length, D)).astype(np.float32)


def tokens(*lengths: int, width: int = 12) -> np.ndarray:
    rng, rows = np.random.default_rng(5), np.zeros((len(lengths), width), np.int32)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = rng.integers(2, 64, length)
    return rows


def empty(**room) -> PromptBank:
    return PromptBank.empty(D, layout().mesh, **room)


def score(model: T5, params: dict, rows: np.ndarray, slots: np.ndarray | None) -> np.ndarray:
    return np.asarray(
        jax.jit(decoding.score, static_argnums=0)(model, params, rows, TARGETS, slots)
    )


def alone(vectors: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Scores [K] of a row with a prompt in front, by `PromptTuning`."""
    row = row[None]
    if not len(vectors):
        return score(T5(CONFIG), backbone(), row, None)[0]
    params = unflatten(flatten(backbone()) | {PROMPT_PATH: vectors})
    return score(T5(CONFIG, PromptTuning(len(vectors))), params, row, None)[0]


def mixed(bank: PromptBank, rows: np.ndarray, slots: list[int]) -> np.ndarray:
    params = join(backbone(), bank.leaves)
    return score(T5(CONFIG, bank.sites), params, rows, np.array(slots, np.int32))


def test_prompts_of_any_length_act_as_alone():
    prompts = {str(n): [prompt(n)] for n in (5, 0, 2, 7)}
    bank, rows = empty().add(prompts), tokens(12, 3, 7, 1, 12)
    names = ["2", "7", "0", "5", "2"]
    found = mixed(bank, rows, [bank.slots[name][0] for name in names])
    for name, row, scores in zip(names, rows, found, strict=True):
        np.testing.assert_allclose(scores, alone(prompts[name][0], row), atol=1e-5, rtol=1e-5)


def test_a_misplaced_prompt_would_be_seen():
    """In front of the free places, not behind them, a short prompt is farther from the tokens."""
    bank = empty(length=7).add({"a": [prompt(2)]})
    shifted = np.roll(np.asarray(bank.prompts), -5, axis=1)
    wrong = PromptBank(jnp.asarray(shifted), bank.lengths + 5, bank.slots)
    difference = np.abs(mixed(wrong, tokens(9), [0]) - alone(prompt(2), tokens(9)[0]))
    assert difference.max() > 1e-3


def test_a_bank_never_changes():
    first = empty(capacity=2).add({"a": [prompt(3)]})
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


def test_slots_of_removed_tasks_are_taken_again():
    bank = empty(capacity=3).add({"a": [prompt(2)], "b": [prompt(2, 1), prompt(2, 2)]})
    bank = bank.remove("b").add({"c": [prompt(1)], "d": [prompt(2, 4)]})
    assert bank.prompts.shape[0] == 3
    row = tokens(6)
    found = mixed(bank, row, [bank.slots["c"][0]])
    np.testing.assert_allclose(found[0], alone(prompt(1), row[0]), atol=1e-5, rtol=1e-5)


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


def test_a_task_that_is_not_there_cannot_be_removed():
    with pytest.raises(UserError, match="no task 'x'; available: a"):
        empty().add({"a": [prompt(1)]}).remove("x")


def test_rows_must_name_their_tasks():
    bank = empty().add({"a": [prompt(1)]})
    with pytest.raises(ValueError, match="name their tasks"):
        score(T5(CONFIG, bank.sites), join(backbone(), bank.leaves), tokens(3), None)


@pytest.mark.parametrize("axis", ["data", "model"])
def test_a_divided_bank_gives_the_same(axis):
    prompts = {str(n): [prompt(n)] for n in (1, 2, 3, 4, 5, 6, 7, 8)}
    rows, slots = tokens(12, 3, 7, 1, 12, 5, 2, 9), [7, 6, 5, 4, 3, 2, 1, 0]
    whole = empty().add(prompts)
    expected = mixed(whole, rows, slots)
    eight = layout(8, 2)
    divided = PromptBank.empty(D, eight.mesh, capacity=5, axis=axis).add(prompts)
    assert divided.prompts.shape[0] % eight.mesh.shape[axis] == 0
    assert not divided.prompts.sharding.is_fully_replicated
    params = join(jax.device_get(backbone()), divided.leaves)
    placed = sharding.put_batch({"rows": rows, "slots": np.array(slots, np.int32)}, eight)
    with sharding.on(eight):
        found = score(T5(CONFIG, divided.sites), params, placed["rows"], placed["slots"])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
