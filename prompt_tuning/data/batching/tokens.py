"""Tokenised examples: those of a task that fits in memory, or a stream of those that do not."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from prompt_tuning.data.batching import token_cache
from prompt_tuning.data.batching.packing import Example
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.memory_source import MemorySource

# Rows of a source that are held at most: MNLI's and QQP's 400,000 are, C4's are not.
MOST_ROWS = 1_000_000
_BLOCK = 4096  # examples whose tasks are drawn together
_CHUNK = 1024  # examples that leave tf.data together: one at a time takes longer than tokenising
_NOTHING_RANDOM = (
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
    seqio.preprocessors.append_eos_after_trim,
)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """N examples, their ids end to end.

    Attributes:
      inputs, targets: ids, int32.
      input_ends, target_ends: [N + 1] int64; example i is from end i to end i + 1.
    """

    inputs: np.ndarray
    input_ends: np.ndarray
    targets: np.ndarray
    target_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ends) - 1

    def __getitem__(self, i: int) -> Example:
        return (
            self.inputs[self.input_ends[i] : self.input_ends[i + 1]],
            self.targets[self.target_ends[i] : self.target_ends[i + 1]],
        )

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    @classmethod
    def of(cls, parts: Iterable["Tokens"]) -> "Tokens":
        """All examples of `parts`, in their order."""
        parts = list(parts)

        def joined(ids: str, ends: str) -> tuple[np.ndarray, np.ndarray]:
            lengths = [np.diff(getattr(part, ends)) for part in parts]
            return (
                np.concatenate([np.zeros(0, np.int32), *(getattr(part, ids) for part in parts)]),
                np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum(),
            )

        return cls(*joined("inputs", "input_ends"), *joined("targets", "target_ends"))

    def endless(self, seed: int, first: int = 0) -> Iterator[Example]:
        """Shuffled epochs one after the other, from example `first` of all on; no two are alike.

        Nothing comes of no examples.
        """
        epoch, begin = divmod(first, max(1, len(self)))
        while len(self):
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            yield from map(self.__getitem__, order[begin:])
            epoch, begin = epoch + 1, 0


def mixed(
    parts: Sequence[Tokens], rates: Sequence[float], seed: int, first: int = 0
) -> Iterator[Example]:
    """Endless examples of several tasks, from example `first` of all on.

    Args:
      parts: none of them empty.
      rates: how often each comes by, in relation to the others.
      seed: of the order.
      first: known without those before it being read.

    Returns:
      Examples with the number of their part; without it, if there is one part.
    """
    if len(parts) == 1:
        yield from parts[0].endless(seed, first)
    chances = np.array(rates) / sum(rates)

    def draws(block: int) -> np.ndarray:
        return np.random.default_rng([seed, block, 1]).choice(len(parts), _BLOCK, p=chances)

    last, begin = divmod(first, _BLOCK)
    before = sum((np.bincount(draws(i), minlength=len(parts)) for i in range(last)), np.int64(0))
    before = before + np.bincount(draws(last)[:begin], minlength=len(parts))
    streams = [part.endless(seed, int(n)) for part, n in zip(parts, before, strict=True)]
    for block in itertools.count(last):
        for part in draws(block)[begin:]:
            yield (*next(streams[part])[:2], int(part))
        begin = 0


def in_memory(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool, cache_dir: str
) -> Tokens | None:
    """A split's examples, cut to `lengths`, in the source's order.

    Args:
      task: of any source.
      split: one that it has.
      lengths: of "inputs" and "targets".
      use_cached: reads SeqIO's offline cache, where the task supports it.
      cache_dir: a folder that keeps them for the next run (`token_cache`); "" for none.

    Returns:
      None where they may differ from epoch to epoch, are too many, or are another source's.
    """
    if not _same_each_epoch(task) or not _fits(task, split, use_cached):
        return None

    def read() -> Tokens:
        dataset = task.get_dataset(
            dict(lengths), split, use_cached=use_cached, shuffle=False, try_in_mem_cache=False
        )
        return Tokens.of(chunks(dataset))

    path = token_cache.path(cache_dir, task, split, lengths) if not use_cached else None
    if path is None:
        return read()
    if arrays := token_cache.load(path):
        return Tokens(**arrays)
    tokens = read()
    token_cache.save(path, dataclasses.asdict(tokens))
    return tokens


def chunks(dataset: tf.data.Dataset) -> Iterator[Tokens]:
    """The "inputs" and "targets" of a dataset, in its order."""
    features = dataset.map(lambda example: (example["inputs"], example["targets"]))
    for batch in features.ragged_batch(_CHUNK):
        parts = [  # of one length, if a preprocessor says so
            part if isinstance(part, tf.RaggedTensor) else tf.RaggedTensor.from_tensor(part)
            for part in batch
        ]
        yield Tokens(*(x.numpy() for part in parts for x in (part.values, part.row_splits)))


def _same_each_epoch(task: seqio.Task) -> bool:
    """Whether nothing random follows what SeqIO's offline cache would keep."""
    last = list(task.preprocessors)
    places = [i for i, p in enumerate(last) if isinstance(p, seqio.CacheDatasetPlaceholder)]
    functions = (getattr(p, "func", p) for p in last[sum(places) + len(places) :])
    return all(function in _NOTHING_RANDOM for function in functions)


def _fits(task: seqio.Task, split: str, use_cached: bool) -> bool:
    if use_cached and task.supports_caching:
        return task.get_cached_stats(split)["examples"] <= MOST_ROWS
    if isinstance(task.source, seqio.TfdsDataSource):
        return (task.source.num_input_examples(split) or MOST_ROWS + 1) <= MOST_ROWS
    return isinstance(task.source, MemorySource)
