"""Length bucketing: batches of similar input length, each bucket one compiled shape."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from prompt_tuning.data.batching.packing import Example, Rows, pack
from prompt_tuning.errors import UserError


def default_bounds(limit: int, smallest: int = 8) -> tuple[int, ...]:
    """Powers of two from `smallest` (even), the numbers midway between them, and `limit` itself."""
    powers = (smallest << i for i in itertools.count())
    bounds = itertools.chain.from_iterable((power, power * 3 // 2) for power in powers)
    return (*itertools.takewhile(lambda bound: bound < limit, bounds), limit)


def bucket_of(length: int, bounds: Sequence[int]) -> int:
    """The smallest bound that holds `length`.

    Raises:
      ValueError: if none does.
    """
    for bound in bounds:
        if length <= bound:
            return bound
    raise ValueError(f"an input of {length} tokens is longer than the last bucket, {bounds[-1]}")


def constant_tokens(bounds: Sequence[int], tokens: int, multiple: int) -> dict[int, int]:
    """Rows of each bucket's batches: as many as `tokens` positions hold, a multiple of `multiple`.

    Raises:
      UserError: if the budget does not hold `multiple` rows of the longest bucket.
    """
    longest = bounds[-1]
    if tokens < longest * multiple:
        raise UserError(
            f"TOKENS_PER_BATCH = {tokens}: too few for {multiple} rows (the devices that a batch "
            f"is divided over) of {longest} tokens; give {longest * multiple} or more"
        )
    return {bound: tokens // bound // multiple * multiple for bound in bounds}


def bucketed(examples: Iterable[Example], sizes: Mapping[int, int]) -> Iterator[tuple[int, Rows]]:
    """Batches of examples of one bucket, in the order in which buckets fill.

    Every example is in exactly one batch; where `examples` end, the last batch of each bucket is
    filled up with empty rows, so that a bucket has one shape.

    Args:
      examples: input and target ids with their end tokens.
      sizes: input lengths of the buckets, rising, to the rows of their batches.

    Yields:
      A bucket's length and a batch's rows, of one example each.
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
    """Lays out one example a row, under T5X's names.

    Returns:
      encoder_input_tokens [B, input_length], decoder_input_tokens, decoder_target_tokens and
      decoder_loss_weights [B, target_length], int32; what only packed rows need is left out.
      Where examples say their task, tasks [B].
    """
    features = pack(rows, prompt_length=0, input_length=input_length, target_length=target_length)
    tasks = [example[2] for row in rows for example in row if len(example) > 2]
    targets = features["decoder_target_tokens"]
    return {
        "encoder_input_tokens": features["encoder_input_tokens"],
        # As T5X shifts: the end token too comes by once more.
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": features["decoder_loss_weights"],
        **({"tasks": np.array(tasks, np.int32)} if tasks else {}),
    }
