"""Packing: several examples share a row, each with its own copy of the prompt.

A packed row is [P places, example 1, P places, example 2, ..., padding]. The model writes the
prompt over the places (`methods.prompt.fill`); segments keep the examples apart in encoder, decoder
and cross attention, and positions restart with each example. Losses and gradients equal those of
the same examples in rows of their own.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray
# Input ids and target ids, end tokens included, and in a mixture the number of the example's task.
Example = tuple[Ids, Ids] | tuple[Ids, Ids, int]
Rows = list[list[Example]]  # of a batch: the examples that share each row
WINDOW = 16  # examples that are packed together, per row of a batch


def assign_rows(
    lengths: Sequence[tuple[int, int]], input_length: int, target_length: int
) -> list[list[int]]:
    """Chooses which examples share a row, by first-fit decreasing.

    Args:
      lengths: Input and target length of each example; the input's includes the prompt's places.
      input_length, target_length: Length of a row.

    Returns:
      The indices of the examples of each row; every example is in exactly one row.

    Raises:
      ValueError: If an example is longer than a row; the message names it.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        source, target = lengths[i]
        if source > input_length or target > target_length:
            raise ValueError(
                f"example {i} takes {source} and {target} positions, "
                f"a row has {input_length} and {target_length}"
            )
        for row, (sources, targets) in enumerate(free):
            if source <= sources and target <= targets:
                rows[row].append(i)
                free[row] = (sources - source, targets - target)
                break
        else:
            rows.append([i])
            free.append((input_length - source, target_length - target))
    return rows


def pack(
    rows: Rows, *, prompt_length: int, input_length: int, target_length: int
) -> dict[str, np.ndarray]:
    """Lays out the examples of each row, under T5X's names for packed features.

    Args:
      rows: Examples with their end tokens.
      prompt_length: P, places in front of each input; 0 for a method that adds no positions.
      input_length, target_length: Length of a row.

    Returns:
      encoder_input_tokens, encoder_segment_ids, encoder_positions [B, input_length] and
      decoder_input_tokens, decoder_target_tokens, decoder_segment_ids, decoder_positions,
      decoder_loss_weights [B, target_length], all int32.
    """
    encoder = {
        f"encoder_{name}": np.zeros((len(rows), input_length), np.int32)
        for name in ("input_tokens", "segment_ids", "positions")
    }
    decoder = {
        f"decoder_{name}": np.zeros((len(rows), target_length), np.int32)
        for name in ("input_tokens", "target_tokens", "segment_ids", "positions")
    }
    for row, examples in enumerate(rows):
        start, begin = 0, 0
        for n, (source, target, *_) in enumerate(examples, 1):
            stop, end = start + prompt_length + len(source), begin + len(target)
            encoder["encoder_input_tokens"][row, start + prompt_length : stop] = source
            encoder["encoder_segment_ids"][row, start:stop] = n
            encoder["encoder_positions"][row, start:stop] = np.arange(stop - start)
            decoder["decoder_input_tokens"][row, begin + 1 : end] = target[:-1]
            decoder["decoder_target_tokens"][row, begin:end] = target
            decoder["decoder_segment_ids"][row, begin:end] = n
            decoder["decoder_positions"][row, begin:end] = np.arange(end - begin)
            start, begin = stop, end
    weights = (decoder["decoder_target_tokens"] > 0).astype(np.int32)
    return {**encoder, **decoder, "decoder_loss_weights": weights}


def packed(
    examples: Iterable[Example],
    batch_size: int,
    prompt_length: int,
    input_length: int,
    target_length: int,
) -> Iterator[Rows]:
    """Groups examples into rows and batches to `pack`, one window of examples at a time.

    Every example is in exactly one row. Once `examples` end, empty rows fill the last batch.

    Args:
      examples: Input and target ids with their end tokens.
      batch_size: Rows per batch.
      prompt_length, input_length, target_length: See `pack`; `input_length` includes the prompts.
    """
    stream, waiting = iter(examples), []
    while window := list(itertools.islice(stream, WINDOW * batch_size)):
        sizes = [(prompt_length + len(source), len(target)) for source, target, *_ in window]
        rows = assign_rows(sizes, input_length, target_length)
        waiting += [[window[i] for i in row] for row in rows]
        while len(waiting) >= batch_size:
            yield waiting[:batch_size]
            waiting = waiting[batch_size:]
    if waiting:
        yield waiting + [[]] * (batch_size - len(waiting))
