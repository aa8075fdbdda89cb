"""Length bucketing: batches of similar input length, each bucket one compiled shape."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from prompt_tuning.data.packing import Example, pack


def default_bounds(limit: int, smallest: int = 16) -> tuple[int, ...]:
    """Powers of two from `smallest`, and `limit` itself."""
    powers = itertools.takewhile(
        lambda bound: bound < limit, (smallest << i for i in itertools.count())
    )
    return (*powers, limit)


def bucket_of(length: int, bounds: Sequence[int]) -> int:
    """The smallest bound that holds `length`.

    Raises:
      ValueError: if none does.
    """
    for bound in bounds:
        if length <= bound:
            return bound
    raise ValueError(f"an input of {length} tokens is longer than the last bucket, {bounds[-1]}")


def bucketed(
    examples: Iterable[Example], bounds: Sequence[int], batch_size: int, target_length: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `batch_size` examples of one bucket, in the order in which buckets fill.

    Every example is in exactly one batch; where `examples` end, the last batch of each bucket is
    filled up with empty rows, so that a bucket has one shape.

    Args:
      examples: input and target ids with their end tokens.
      bounds: input lengths of the buckets, rising.
      batch_size: rows of a batch.
      target_length: of a row.

    Yields:
      T5X's encoder-decoder features [B, bound] and [B, target_length], int32.
    """
    waiting: dict[int, list[Example]] = {bound: [] for bound in bounds}
    for example in examples:
        bound = bucket_of(len(example[0]), bounds)
        waiting[bound].append(example)
        if len(waiting[bound]) == batch_size:
            yield _batch(waiting.pop(bound), bound, batch_size, target_length)
            waiting[bound] = []
    for bound, rest in waiting.items():
        if rest:
            yield _batch(rest, bound, batch_size, target_length)


def _batch(
    examples: Sequence[Example], bound: int, batch_size: int, target_length: int
) -> dict[str, np.ndarray]:
    """One example a row; the features that only packed rows need are left out."""
    rows = [[i] if i < len(examples) else [] for i in range(batch_size)]
    features = pack(
        examples, rows, prompt_length=0, input_length=bound, target_length=target_length
    )
    return {
        name: rows
        for name, rows in features.items()
        if not name.endswith(("_segment_ids", "_positions"))
    }
