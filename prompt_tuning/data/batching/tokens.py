"""Tokenised examples: those of a task that fits in memory, or a stream of those that do not."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from prompt_tuning.data.batching import token_cache
from prompt_tuning.data.batching.packing import Example
from prompt_tuning.data.batching.settings import FEATURES
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.tasks import begin_inputs
from prompt_tuning.errors import UserError

# Most rows of a source that is held in memory: MNLI and QQP (400,000) fit, C4 does not.
MOST_ROWS = 1_000_000
_BLOCK = 4096  # examples whose tasks are drawn together
_CHUNK = 1024  # examples that leave tf.data together: one at a time takes longer than tokenising
T = TypeVar("T")
_DETERMINISTIC = (
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
    seqio.preprocessors.append_eos_after_trim,
    begin_inputs,
)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """N examples, their ids end to end.

    Attributes:
      inputs, targets: Ids, int32.
      input_ends, target_ends: [N + 1] int64; example i runs from end i to end i + 1.
      cut: [2] float64, how many inputs and targets were longer than their length and so cut; NaN
        where the examples do not keep their text.
    """

    inputs: np.ndarray
    input_ends: np.ndarray
    targets: np.ndarray
    target_ends: np.ndarray
    cut: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ends) - 1

    def __getitem__(self, i: int) -> Example:
        return (
            self.inputs[self.input_ends[i] : self.input_ends[i + 1]],
            self.targets[self.target_ends[i] : self.target_ends[i + 1]],
        )

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    def take(self, indices: Sequence[int] | np.ndarray) -> "Tokens":
        """Some of the examples, in the order of their indices; `cut` is NaN."""
        inputs, targets = zip(*(self[i] for i in indices), strict=True)
        return Tokens(
            inputs=np.concatenate(inputs),
            input_ends=np.cumsum([0, *map(len, inputs)]),
            targets=np.concatenate(targets),
            target_ends=np.cumsum([0, *map(len, targets)]),
            cut=np.full(2, np.nan),
        )

    def by_target(self) -> list["Tokens"]:
        """The examples of each target, the targets in the order of their first examples."""
        groups: dict[bytes, list[int]] = {}
        for i, (begin, end) in enumerate(itertools.pairwise(self.target_ends)):
            groups.setdefault(self.targets[begin:end].tobytes(), []).append(i)
        return [self.take(group) for group in groups.values()]

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

        cut = sum((part.cut for part in parts), np.zeros(2))
        return cls(*joined("inputs", "input_ends"), *joined("targets", "target_ends"), cut)

    def endless(self, seed: int, first: int = 0) -> Iterator[Example]:
        """Shuffled epochs one after the other, each in another order, from example `first` on.

        Yields nothing if there are no examples.
        """
        epoch, begin = divmod(first, max(1, len(self)))
        while len(self):
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            yield from map(self.__getitem__, order[begin:])
            epoch, begin = epoch + 1, 0


def mixed(
    parts: Sequence[Tokens], rates: Sequence[float], seed: int, first: int = 0
) -> Iterator[Example]:
    """Draws an endless stream of examples from several tasks.

    Args:
      parts: Tokens of each task, none of them empty.
      rates: Relative frequency of each task.
      seed: Seed of the order.
      first: Number of the first example; none before it is read.

    Yields:
      Examples with the number of their task, or without it if there is only one.
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


def fits(task: seqio.Task, split: str, use_cached: bool) -> bool:
    """Whether a split can be held in memory: its examples are few and the same in each epoch."""
    return _same_each_epoch(task) and _is_small(task, split, use_cached)


def in_memory(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool, cache_dir: str
) -> Tokens | None:
    """A split's examples, cut to `lengths`, in the source's order.

    Args:
      task: A SeqIO task.
      split: One of its splits.
      lengths: Most tokens of "inputs" and "targets".
      use_cached: Whether to read SeqIO's offline cache, where the task supports it.
      cache_dir: Folder that keeps the tokens for the next run (`token_cache`); "" for none.

    Returns:
      The tokens; None unless the split `fits`.
    """
    if not fits(task, split, use_cached):
        return None

    def read() -> Tokens:
        dataset = task.get_dataset(
            dict(lengths), split, use_cached=use_cached, shuffle=False, try_in_mem_cache=False
        )
        return Tokens.of(chunks(dataset, task.output_features, lengths))

    path = token_cache.path(cache_dir, task, split, lengths) if not use_cached else None
    if path is None:
        return read()
    if arrays := token_cache.load(path):
        return Tokens(**arrays)
    tokens = read()
    token_cache.save(path, dataclasses.asdict(tokens))
    return tokens


def first_chunk(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool, seed: int
) -> Tokens | None:
    """The first examples of a shuffled split; None, without reading, if they keep no text."""
    dataset = task.get_dataset(
        dict(lengths), split, use_cached=use_cached, shuffle=True, seed=seed, num_epochs=1
    )
    if not keeps_text(dataset):
        return None
    return next(chunks(dataset, task.output_features, lengths), None)


def chunks(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature] = MappingProxyType({}),
    lengths: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Tokens]:
    """The "inputs" and "targets" of a dataset, in its order.

    Args:
      dataset: Examples, cut to `lengths`.
      output_features: Features of the task; empty to leave `cut` NaN.
      lengths: Most tokens of the features, end tokens included.
    """
    counts_cuts = bool(output_features) and keeps_text(dataset)

    def columns(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        ids = tuple(example[name] for name in FEATURES)
        if not counts_cuts:
            return ids
        # Only texts of full length can have been cut.
        return ids + tuple(
            tf.where(tf.size(example[name]) < lengths[name], "", example[f"{name}_pretokenized"])
            for name in FEATURES
        )

    for inputs, targets, *texts in readable(dataset.map(columns).ragged_batch(_CHUNK)):
        source, target = [  # dense if a preprocessor fixes the length
            part if isinstance(part, tf.RaggedTensor) else tf.RaggedTensor.from_tensor(part)
            for part in (inputs, targets)
        ]
        cut = [np.nan, np.nan]
        if counts_cuts:
            cut = [
                sum(
                    is_longer(text.decode(), output_features[name], lengths[name])
                    for text in column.numpy()
                    if text
                )
                for name, column in zip(FEATURES, texts, strict=True)
            ]
        yield Tokens(
            inputs=source.values.numpy(),
            input_ends=source.row_splits.numpy(),
            targets=target.values.numpy(),
            target_ends=target.row_splits.numpy(),
            cut=np.array(cut, np.float64),
        )


def readable(examples: Iterable[T]) -> Iterator[T]:
    """Yields the examples of a dataset.

    Raises:
      UserError: If one of its files is damaged or missing.
    """
    try:
        yield from examples
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        reason = re.sub(r"\{\{.*?\}\} | \[(\[|Op:).*", "", error.message, flags=re.DOTALL)
        raise UserError(f"the data cannot be read to their end: {reason}") from error


def keeps_text(dataset: tf.data.Dataset) -> bool:
    """Whether examples keep their texts, as `seqio.preprocessors.tokenize` does by default."""
    scalar = tf.TensorSpec([], tf.string)
    return all(dataset.element_spec.get(f"{name}_pretokenized") == scalar for name in FEATURES)


def is_longer(text: str, feature: seqio.Feature, length: int) -> bool:
    """Whether a text, with its end token if it has one, has more than `length` tokens."""
    return len(feature.vocabulary.encode(text)) + feature.add_eos > length


def _same_each_epoch(task: seqio.Task) -> bool:
    """Whether nothing random follows what SeqIO's offline cache would keep."""
    steps = list(task.preprocessors)
    places = [i for i, p in enumerate(steps) if isinstance(p, seqio.CacheDatasetPlaceholder)]
    functions = (getattr(p, "func", p) for p in steps[sum(places) + len(places) :])
    return all(function in _DETERMINISTIC for function in functions)


def _is_small(task: seqio.Task, split: str, use_cached: bool) -> bool:
    if use_cached and task.supports_caching:
        return task.get_cached_stats(split)["examples"] <= MOST_ROWS
    if isinstance(task.source, seqio.TfdsDataSource):
        return (task.source.num_input_examples(split) or MOST_ROWS + 1) <= MOST_ROWS
    return isinstance(task.source, MemorySource)
