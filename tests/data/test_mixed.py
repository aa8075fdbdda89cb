"""Batches of a mixture say which task an example is of, and come at the tasks' rates."""

import itertools

import numpy as np
import pytest

from prompt_tuning.data import tasks
from prompt_tuning.data.batches import Batching, TaskData
from prompt_tuning.data.batching.tokens import Tokens, mixed
from prompt_tuning.data.files import Row

NAMES = ("mixed_a", "mixed_b")


def numbered(count: int, offset: int) -> Tokens:
    """Examples of one token each, `offset` and up."""
    ids, ends = np.arange(offset, offset + count, dtype=np.int32), np.arange(count + 1)
    return Tokens(ids, ends, ids, ends, cut=np.zeros(2))


PARTS = [numbered(5, 100), numbered(700, 1000), numbered(30, 10)]


def test_rates_are_kept():
    drawn = [task for _, _, task in itertools.islice(mixed(PARTS, [1, 6, 3], seed=0), 20_000)]
    shares = np.bincount(drawn) / 20_000
    np.testing.assert_allclose(shares, [0.1, 0.6, 0.3], atol=0.015)  # over 4 standard deviations


def test_each_task_comes_by_in_whole_epochs():
    examples = list(itertools.islice(mixed(PARTS, [1, 1, 1], seed=0), 3_000))
    for task, part in enumerate(PARTS):
        own = [int(inputs[0]) for inputs, _, of in examples if of == task]
        epochs = [own[i : i + len(part)] for i in range(0, len(own), len(part))]
        assert len(epochs) > 1
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)


@pytest.mark.parametrize("first", [1, 4_095, 4_096, 9_000])
def test_starting_later_is_the_same_stream(first):
    def some(stream):
        return [(int(x[0]), int(y[0]), task) for x, y, task in itertools.islice(stream, 50)]

    whole = mixed(PARTS, [1, 6, 3], seed=4)
    assert some(itertools.islice(whole, first, None)) == some(
        mixed(PARTS, [1, 6, 3], seed=4, first=first)
    )


def test_one_part_is_its_own_stream():
    [alone] = [list(itertools.islice(mixed(PARTS[:1], [2.0], seed=3), 12))]
    again = list(itertools.islice(PARTS[0].endless(3), 12))
    assert [(int(x[0]), int(y[0])) for x, y in alone] == [(int(x[0]), int(y[0])) for x, y in again]


@pytest.fixture
def mixture(vocabulary) -> str:
    texts = {"mixed_a": ["film", "house"], "mixed_b": ["what is a long long text about this"] * 3}
    for name in NAMES:
        rows = [Row(text, "yes") for text in texts[name]]
        tasks.register(name, {"train": lambda rows=rows: rows}, vocabulary)
    tasks.add_mixture("mixed_both", {"mixed_a": 1, "mixed_b": 2})
    return "mixed_both"


@pytest.mark.parametrize("batching", ["padded", "bucketed"])
def test_batches_name_the_task_of_each_row(mixture, batching):
    data = TaskData(mixture, {"inputs": 32, "targets": 4}, 8, batching=Batching(batching))
    assert data.tasks == NAMES
    seen = set()
    for batch in itertools.islice(data.train_batches(0), 6):
        lengths = (batch["encoder_input_tokens"] > 0).sum(axis=1)
        # The second task's text is the long one.
        np.testing.assert_array_equal(batch["tasks"], (lengths > 4).astype(np.int32))
        seen |= set(batch["tasks"].tolist())
    assert seen == {0, 1}


def test_a_task_alone_needs_no_number(mixture):
    data = TaskData("mixed_a", {"inputs": 32, "targets": 4}, 2)
    assert "tasks" not in next(data.train_batches(0))
    assert data.tasks == ("mixed_a",)
