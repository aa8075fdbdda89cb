"""Batches as a user's function gives them, checked before they reach a device."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.training.step import OPTIONAL_FEATURES
from prompt_tuning.transformer.vocabulary import check_ids

HostBatch = Mapping[str, np.ndarray]
Batches = Callable[[int], Iterator[HostBatch]]
_TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
_WEIGHTS = "decoder_loss_weights"
_READ = {*_TOKENS, *OPTIONAL_FEATURES, _WEIGHTS}
_SCALE = "loss_scale"  # of `step`, which adds it to the parts of a batch


def batches_from(batches: Batches, start: int) -> Iterator[HostBatch]:
    """The batches from a step on.

    Raises:
      UserError: If `batches` is no function to an iterator over batches, or as `checked`.
    """
    given = batches(start) if callable(batches) else batches
    if not (callable(batches) and isinstance(given, Iterable)):
        raise UserError(
            f"batches: must be a function from a step to an iterator over batches, not of type "
            f"{type(batches).__name__}{' to ' + type(given).__name__ if callable(batches) else ''}"
        )
    return map(checked, given)


def check_start(batches: Callable[[int], Iterator[HostBatch]]) -> None:
    """Checks that batches begin at the step that is asked for, as a run that resumes needs.

    Raises:
      UserError: If those from step 1 on begin with the first of step 0, though others follow it.
    """
    first, second = itertools.islice(itertools.chain(batches(0), (None, None)), 2)
    of_step_1 = next(batches(1), None)
    if _are_same(first, of_step_1) and not _are_same(first, second):
        raise UserError(
            "batches: those from step 1 on begin with the batch of step 0, so a run that resumes "
            "would train on the first ones again; begin at the step of the argument"
        )


def _are_same(one: HostBatch | None, other: HostBatch | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def checked(batch: HostBatch) -> HostBatch:
    """Returns a copy of a batch, whose arrays the iterator may fill anew while they are in use.

    Raises:
      UserError: If it lacks an array, an array has another shape or type than the others ask for,
        or there is nothing to learn from it, since no target counts or inputs give them away.
    """
    if not isinstance(batch, Mapping):
        raise UserError(f"batches: a batch is of type {type(batch).__name__}; must be a dict")
    if missing := [name for name in _TOKENS if name not in batch]:
        raise UserError(f"batches: a batch lacks {', '.join(missing)}")
    prefixes = ("encoder_", "decoder_")
    if _SCALE in batch:
        raise UserError(f"batches: {_SCALE} follows from the loss; give {_WEIGHTS} instead")
    if unknown := [name for name in batch if name not in _READ and name.startswith(prefixes)]:
        raise UserError(
            f"batches: a batch has {unknown[0]!r}, which is not read; the arrays that are: "
            f"{', '.join(sorted(_READ))}"
        )
    source, inputs, targets = (_matrix(name, batch[name]) for name in _TOKENS)
    if len(source) != len(targets) or inputs.shape != targets.shape:
        shapes = ", ".join(f"{name} {np.shape(batch[name])}" for name in _TOKENS)
        raise UserError(
            f"batches: {shapes}: must have equally many rows, and those of the decoder one shape"
        )
    counts = targets != 0
    if _WEIGHTS in batch:
        weights = np.asarray(batch[_WEIGHTS])
        if weights.shape != targets.shape:
            raise UserError(
                f"batches: {_WEIGHTS} {weights.shape}: must have the shape of the targets, "
                f"{targets.shape}"
            )
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise UserError(f"batches: {_WEIGHTS}: must be finite numbers from 0 on")
        counts = weights != 0
    if not counts.any():
        raise UserError("batches: a batch has no target that counts; leave it out")
    if np.array_equal(inputs[counts], targets[counts]):
        raise UserError(
            "batches: decoder_input_tokens are decoder_target_tokens, which give each answer away; "
            "shift them by one: a 0 comes first, and the last token is left out"
        )
    return {name: np.array(rows) for name, rows in batch.items()}


def check_packing(batch: HostBatch, places: int | None) -> HostBatch:
    """Returns a batch whose packed examples have room for what a method puts in front of them.

    Args:
      batch: As `checked` returns it.
      places: `Method.positions`.

    Raises:
      UserError: If a packed batch lacks what says where its examples begin, the method cannot be
        packed, or a token is where the method writes.
    """
    segments, positions = (batch.get(f"encoder_{name}") for name in ("segment_ids", "positions"))
    is_packed = segments is not None and np.max(segments, initial=0) > 1
    if places == 0 or not (is_packed or positions is not None):
        return batch
    if places is None:
        raise UserError(
            "batches: have packed examples, in front of which this method has no places; give rows "
            "of one example, without encoder_positions"
        )
    if segments is None or positions is None:
        raise UserError(
            "batches: packed examples need encoder_segment_ids and encoder_positions, which say "
            "where the prompt is"
        )
    taken = (np.asarray(positions) < places) & (np.asarray(segments) > 0)
    if np.asarray(batch["encoder_input_tokens"])[taken].any():
        raise UserError(
            f"batches: a packed example has tokens where the prompt is; leave its first {places} "
            "places 0 (`packing.pack` with prompt_length does)"
        )
    return batch


def check_tokens(batch: HostBatch, vocab_size: int) -> HostBatch:
    """Returns a batch; raises UserError if the embedding has no row for one of its tokens."""
    for name in _TOKENS:
        check_ids(np.asarray(batch[name]), vocab_size)
    return batch


def from_example(batches: Batches, count: int) -> Iterator[HostBatch]:
    """The batches after the first `count` examples, which take whole batches."""
    passed = 0
    for batch in batches(0):
        if passed >= count:
            yield batch
        passed += examples_in(batch)


def examples_in(batch: HostBatch) -> int:
    """The number of examples of a batch; several share a packed row."""
    segments = batch.get("decoder_segment_ids")
    if segments is None:
        return len(batch["encoder_input_tokens"])
    return int(segments.max(axis=1).sum())


def _matrix(name: str, tokens: np.ndarray) -> np.ndarray:
    dtype, shape = getattr(tokens, "dtype", None), getattr(tokens, "shape", ())
    if dtype is None or not np.issubdtype(dtype, np.integer) or len(shape) != 2 or 0 in shape:
        what = f"{dtype} {tuple(shape)}" if dtype is not None else f"a {type(tokens).__name__}"
        raise UserError(f"batches: {name} is {what}; must be an array of whole numbers [B, T]")
    return np.asarray(tokens)
