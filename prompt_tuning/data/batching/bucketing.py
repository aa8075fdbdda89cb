"""Length bucketing: batches of similar input length, one compiled shape per bucket."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from prompt_tuning.data.batching.packing import Example, Ids, Rows
from prompt_tuning.errors import UserError


def default_bounds(limit: int, smallest: int = 8) -> tuple[int, ...]:
    """Powers of two from `smallest` (even), the numbers midway between them, and `limit` itself."""
    powers = (smallest << i for i in itertools.count())
    bounds = itertools.chain.from_iterable((power, power * 3 // 2) for power in powers)
    return (*itertools.takewhile(lambda bound: bound < limit, bounds), limit)


def bucket_of(length: int, bounds: Sequence[int]) -> int:
    """The smallest bound that is at least `length`.

    Raises:
      ValueError: If `length` is greater than every bound.
    """
    for bound in bounds:
        if length <= bound:
            return bound
    raise ValueError(f"an input of {length} tokens is longer than the last bucket, {bounds[-1]}")


def constant_tokens(bounds: Sequence[int], tokens: int, multiple: int) -> dict[int, int]:
    """Rows per batch of each bucket: as many as `tokens` positions hold, a multiple of `multiple`.

    Raises:
      UserError: If `tokens` positions cannot hold `multiple` rows of the longest bucket.
    """
    longest = bounds[-1]
    if tokens < longest * multiple:
        raise UserError(
            f"TOKENS_PER_BATCH = {tokens}: too few for {multiple} rows (the devices that a batch "
            f"is divided over) of {longest} tokens; must be at least {longest * multiple}"
        )
    return {bound: tokens // bound // multiple * multiple for bound in bounds}


def bucketed(examples: Iterable[Example], sizes: Mapping[int, int]) -> Iterator[tuple[int, Rows]]:
    """Groups examples of one bucket into batches, in the order in which buckets fill.

    Every example is in exactly one batch. Once `examples` end, empty rows fill the last batch of
    each bucket, so that a bucket has a single shape.

    Args:
      examples: Input and target ids with their end tokens.
      sizes: Rows per batch for each bucket's input length; the lengths must rise.

    Yields:
      A bucket's input length and the rows of a batch, one example per row.
    """
    bounds = tuple(sizes)
    waiting: dict[int, Rows] = {bound: [] for bound in bounds}
    for example in examples:
        bound = bucket_of(len(example[0]), bounds)
        waiting[bound].append([example])
        if len(waiting[bound]) == sizes[bound]:
            yield bound, waiting[bound]
            waiting[bound] = []
    for bound, rest in waiting.items():
        if rest:
            yield bound, rest + [[]] * (sizes[bound] - len(rest))


def pad(rows: Rows, input_length: int, target_length: int) -> dict[str, np.ndarray]:
    """Lays out one example per row, under T5X's feature names.

    Returns:
      encoder_input_tokens [B, input_length], decoder_input_tokens, decoder_target_tokens and
      decoder_loss_weights [B, target_length], int32; tasks [B] too if the examples carry the number
      of their task. Segments and positions, which only packed rows need, are absent.
    """
    targets = pad_ids([row[0][1] if row else () for row in rows], target_length)
    tasks = [example[2] for row in rows for example in row if len(example) > 2]
    return {
        "encoder_input_tokens": pad_ids([row[0][0] if row else () for row in rows], input_length),
        # As in T5X, the end token is shifted in as well.
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
        **({"tasks": np.array(tasks, np.int32)} if tasks else {}),
    }


def pad_ids(ids: Sequence[Ids], length: int) -> np.ndarray:
    """Pads lists of at most `length` ids with 0, to [N, length] int32."""
    padded = np.zeros((len(ids), length), np.int32)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = values
    return padded
