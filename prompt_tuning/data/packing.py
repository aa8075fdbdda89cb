"""Packing: several examples share a row, each with its own copy of the prompt.

A packed row is [P places, example 1, P places, example 2, ..., padding]: the model puts the prompt
over the places (`methods.prompt.fill`), segments keep the examples apart in encoder, decoder and
cross attention, and positions start again with each. Losses and gradients are those of the
examples one a row.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Example = tuple[Sequence[int], Sequence[int]]  # input ids and target ids, end tokens included
WINDOW = 16  # examples that are packed together, per row of a batch


def assign_rows(
    lengths: Sequence[tuple[int, int]], input_length: int, target_length: int
) -> list[list[int]]:
    """First-fit decreasing: which examples share a row.

    Args:
      lengths: of each example, input (its places for the prompt included) and target.
      input_length, target_length: of a row.

    Returns:
      A list of rows, each the indices of its examples; every example is in exactly one.

    Raises:
      ValueError: naming the example that is longer than a row.
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
    examples: Sequence[Example], rows: Sequence[Sequence[int]], *, prompt_length: int,
    input_length: int, target_length: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Lays examples out in rows, under T5X's names for packed features.

    Args:
      examples: with their end tokens.
      rows: of `assign_rows`.
      prompt_length: P, places in front of each input; 0 for a method that adds no positions.
      input_length, target_length: of a row.

    Returns:
      encoder_input_tokens, encoder_segment_ids, encoder_positions [B, input_length] and
      decoder_input_tokens, decoder_target_tokens, decoder_segment_ids, decoder_positions,
      decoder_loss_weights [B, target_length], all int32.
    """
    sources = [[[0] * prompt_length + list(examples[i][0]) for i in row] for row in rows]
    targets = [[list(examples[i][1]) for i in row] for row in rows]
    inputs = [[[0, *target[:-1]] for target in row] for row in targets]
    tokens = _rows(targets, target_length)
    return {
        "encoder_input_tokens": _rows(sources, input_length),
        "encoder_segment_ids": _rows(_segments(sources), input_length),
        "encoder_positions": _rows(_positions(sources), input_length),
        "decoder_input_tokens": _rows(inputs, target_length),
        "decoder_target_tokens": tokens,
        "decoder_segment_ids": _rows(_segments(targets), target_length),
        "decoder_positions": _rows(_positions(targets), target_length),
        "decoder_loss_weights": (tokens > 0).astype(np.int32),
    }


def packed(
    examples: Iterable[Example],
    batch_size: int,
    prompt_length: int,
    input_length: int,
    target_length: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `batch_size` packed rows, each window of examples packed on its own.

    Every example is in exactly one row; where `examples` end, empty rows fill the last batch.

    Args:
      examples: input and target ids with their end tokens.
      batch_size: rows of a batch.
      prompt_length, input_length, target_length: see `pack`; the prompt counts in `input_length`.
    """
    lengths = {"input_length": input_length, "target_length": target_length}
    stream, waiting = iter(examples), []
    while window := list(itertools.islice(stream, WINDOW * batch_size)):
        sizes = [(prompt_length + len(source), len(target)) for source, target in window]
        waiting += [[window[i] for i in row] for row in assign_rows(sizes, **lengths)]
        while len(waiting) >= batch_size:
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            yield _lay_out(batch, prompt_length, **lengths)
    if waiting:
        waiting += [[]] * (batch_size - len(waiting))
        yield _lay_out(waiting, prompt_length, **lengths)


def _lay_out(rows: Sequence[Sequence[Example]], prompt_length: int, **lengths: int):
    """`pack` of rows given by their examples."""
    ends = list(itertools.accumulate((len(row) for row in rows), initial=0))
    indices = [range(start, end) for start, end in itertools.pairwise(ends)]
    examples = [example for row in rows for example in row]
    return pack(examples, indices, prompt_length=prompt_length, **lengths)


def _rows(rows: Sequence[Sequence[Sequence[int]]], length: int) -> np.ndarray:
    out = np.zeros((len(rows), length), np.int32)
    for line, parts in zip(out, rows, strict=True):
        ids = [token for part in parts for token in part]
        line[: len(ids)] = ids
    return out


def _segments(rows: list[list[list[int]]]) -> list[list[list[int]]]:
    return [[[n] * len(part) for n, part in enumerate(row, 1)] for row in rows]


def _positions(rows: list[list[list[int]]]) -> list[list[list[int]]]:
    return [[list(range(len(part))) for part in row] for row in rows]
