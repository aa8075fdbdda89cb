"""The stream of training batches is the same for any number of processes, resumed or not."""

import functools
import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data import tasks
from prompt_tuning.data.batches import Batching, TaskData
from prompt_tuning.data.batching import tokens
from prompt_tuning.data.files import Row
from prompt_tuning.errors import UserError

NAME, OTHER, MIXTURE = "test_streams_rows", "test_streams_other", "test_streams_mixture"
ROWS = [Row(f"{i} " + "word " * (i % 9), f"target {i % 3}") for i in range(37)]
LENGTHS = {"inputs": 24, "targets": 6}
BATCHINGS = {
    "padded": Batching(),
    "bucketed": Batching("bucketed", bounds=(8, 16, 24)),
    "packed": Batching("packed", packed_lengths={"inputs": 64, "targets": 30}),
    "constant tokens": Batching("bucketed", bounds=(8, 24), tokens=200),
}


@pytest.fixture(scope="module", autouse=True)
def registered(vocabulary):
    tasks.register(NAME, {"train": functools.partial(list, ROWS)}, vocabulary)
    tasks.register(OTHER, {"train": lambda: [Row("other", "x"), Row("more", "y")]}, vocabulary)
    seqio.MixtureRegistry.add(MIXTURE, [NAME, OTHER], default_rate=1.0)


@functools.cache  # its examples are tokenised once
def data_of(kind: str, task: str) -> TaskData:
    return TaskData(task, LENGTHS, batch_size=8, batching=BATCHINGS[kind])


def batches(kind, start, count, task=NAME) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(data_of(kind, task).train_batches(start, 3, multiple=4), count))


def assert_same(a, b) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


STREAMS = [*((kind, NAME) for kind in BATCHINGS), ("packed", MIXTURE)]


@pytest.mark.parametrize(("kind", "task"), [*STREAMS, ("padded", MIXTURE)])
def test_a_resumed_stream_is_the_uninterrupted_one(kind, task):
    whole = batches(kind, 0, 14, task)
    for start in (1, 4, 5, 13):
        assert_same(batches(kind, start, 14 - start, task), whole[start:])
    data_of.cache_clear()  # another process tokenises again
    assert_same(batches(kind, 9, 5, task), whole[9:])


def test_a_late_position_is_found_without_reading_earlier_examples(monkeypatch):
    task = seqio.get_mixture_or_task(NAME)
    actual = tokens.in_memory(task, "train", LENGTHS, use_cached=False, cache_dir="")
    asked = []
    monkeypatch.setattr(np.random, "default_rng", lambda seed: asked.append(seed) or Counting())
    [first] = itertools.islice(actual.endless(7, 37 * 10**9 + 4), 1)
    assert asked == [[7, 10**9]]
    assert list(first[0]) == list(actual[4][0])


class Counting:
    """An order that changes nothing."""

    @staticmethod
    def permutation(size: int) -> np.ndarray:
        return np.arange(size)


@pytest.mark.parametrize("kind", BATCHINGS)
def test_skipping_lays_out_nothing(monkeypatch, kind):
    """The rows of batches that are skipped are never made."""
    import prompt_tuning.data.batching.settings as module

    made = []
    for name in ("pad", "pack"):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda rows, *a, real=real, **k: made.append(1) or real(rows, *a, **k)
        )
    assert len(batches(kind, 20, 2)) == len(made) == 2


@pytest.mark.parametrize("kind", ["bucketed", "packed", "constant tokens"])
def test_whole_epochs_and_each_row_alike(kind, vocabulary):
    seen = []
    for batch in batches(kind, 0, 60):
        inputs = batch["encoder_input_tokens"]
        segments = batch.get("encoder_segment_ids", (inputs > 0).astype(int))
        for row, numbers in zip(inputs, segments, strict=True):
            for n in range(1, numbers.max() + 1):
                seen.append(vocabulary.decode([int(t) for t in row[numbers == n] if t > 1]))
    counts = [seen.count(row.inputs.strip()) for row in ROWS]
    assert sum(counts) == len(seen)
    # What waits in a bucket or for a row: a batch of the longest wait is a few epochs of its rows.
    assert min(counts) >= 2 and max(counts) - min(counts) <= 4


def test_batches_of_constant_tokens_are_filled_to_the_budget():
    shapes = {b["encoder_input_tokens"].shape for b in batches("constant tokens", 0, 40)}
    assert shapes == {(24, 8), (8, 24)}  # 200 // bound, rounded down to a multiple of 4


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_constant_tokens_are_for_buckets(kind):
    with pytest.raises(UserError, match=f"TOKENS_PER_BATCH = 64: .*'bucketed', not '{kind}'"):
        Batching(kind, tokens=64)


def test_a_budget_too_small_is_refused_before_anything_is_read():
    data = TaskData(NAME, LENGTHS, batch_size=8, batching=Batching("bucketed", tokens=47))
    with pytest.raises(UserError, match="TOKENS_PER_BATCH = 47: too few for 2 rows"):
        data.train_batches(0, multiple=2)


def test_tasks_that_change_from_epoch_to_epoch_are_not_held(vocabulary):
    """A preprocessor after the place of SeqIO's cache may be random, so it runs in each epoch."""

    @seqio.map_over_dataset(num_seeds=1)
    def noise(example, seed):
        number = tf.random.stateless_uniform([1], seed, 3, 999, tf.int32)
        return example | {"inputs": number}

    seqio.TaskRegistry.add(
        "test_streams_noise",
        tasks.RowSource({"train": lambda: ROWS[:4]}),
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            noise,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=tasks.features(vocabulary),
        shuffle_buffer_size=None,
    )
    task = seqio.get_mixture_or_task("test_streams_noise")
    assert tokens.in_memory(task, "train", LENGTHS, False, "") is None
    actual = batches("padded", 0, 4, "test_streams_noise")
    numbers = np.concatenate([b["encoder_input_tokens"][:, 0] for b in actual])
    assert len(set(numbers.tolist())) > 8  # more than the rows there are
