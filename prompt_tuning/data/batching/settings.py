"""How a task's training examples become batches: padded, bucketed or packed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from prompt_tuning.data.batching.bucketing import bucketed, constant_tokens, default_bounds, pad
from prompt_tuning.data.batching.packing import Example, pack, packed
from prompt_tuning.errors import MOST_TOKENS, UserError, whole_number

KINDS = ("padded", "bucketed", "packed")
FEATURES = ("inputs", "targets")


@dataclasses.dataclass(frozen=True)
class Batching:
    """How examples become batches.

    Attributes:
      kind: "padded" to the full lengths; "bucketed", batches of similar input length; or "packed",
        several examples per row.
      bounds: Input lengths of the buckets; empty for powers of two, the numbers midway between
        them, and the full length.
      packed_lengths: Input and target positions of a packed row; None for one full input with its
        prompt and eight full targets.
      tokens: Input positions of a bucketed batch, from which its number of rows follows; None for
        batches of a fixed number of rows.

    Raises:
      UserError: For an unknown kind or an impossible size.
    """

    kind: str = "padded"
    bounds: Sequence[int] = ()
    packed_lengths: Mapping[str, int] | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"BATCHING = {self.kind!r}: must be one of {', '.join(KINDS)}")
        for bound in self.bounds:
            whole_number("BUCKET_BOUNDS, a length", bound, 1, MOST_TOKENS)
        if self.tokens is not None:
            whole_number("TOKENS_PER_BATCH", self.tokens, 1)
        if self.packed_lengths is not None:
            check_lengths("PACKED_LENGTHS", self.packed_lengths)
        if self.tokens is not None and self.kind != "bucketed":
            raise UserError(
                f"TOKENS_PER_BATCH = {self.tokens}: is for BATCHING = 'bucketed', not "
                f"{self.kind!r}, whose batches have BATCH_SIZE rows"
            )

        if self.packed_lengths is not None and self.kind != "packed":
            raise UserError(
                f"PACKED_LENGTHS = {dict(self.packed_lengths)}: is for BATCHING = 'packed', not "
                f"{self.kind!r}"
            )

    def check_bounds(self, input_length: int) -> None:
        """Raises UserError unless `bounds` rise and reach the input length."""
        bounds = list(self.bounds)
        if bounds and (bounds != sorted(set(bounds)) or bounds[-1] < input_length):
            raise UserError(
                f"BUCKET_BOUNDS = {self.bounds}: must rise, and end with the input length "
                f"{input_length} or more"
            )

    def batches(
        self,
        examples: Callable[[int], Iterator[Example]],
        start: int,
        *,
        lengths: Mapping[str, int],
        batch_size: int,
        positions: int | None = 0,
        multiple: int = 1,
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches of a stream of examples, from batch `start` on.

        Args:
          examples: Gives the stream from its n-th example on.
          start: Number of the first batch.
          lengths: Most tokens of "inputs" and "targets", end tokens included.
          batch_size: Rows per batch, unless `tokens` is set.
          positions: Places that the method takes in front of each packed example; None if its
            examples cannot be packed.
          multiple: Number that the rows of a batch must be a multiple of.

        Returns:
          Batches as `bucketing.pad` or, packed ones, `packing.pack` lays them out.

        Raises:
          UserError: If examples cannot be packed, or a row or `tokens` is too small.
        """
        if self.kind == "packed":
            return self._packed(examples(0), start, lengths, batch_size, positions)
        sizes = self._bucket_sizes(lengths["inputs"], batch_size, multiple)
        if self.kind == "padded":  # every batch takes as many examples, so earlier ones are skipped
            groups = bucketed(examples(start * batch_size), sizes)
        else:
            groups = itertools.islice(bucketed(examples(0), sizes), start, None)
        return (pad(rows, bound, lengths["targets"]) for bound, rows in groups)

    def _packed(
        self,
        examples: Iterator[Example],
        start: int,
        lengths: Mapping[str, int],
        batch_size: int,
        positions: int | None,
    ) -> Iterator[dict[str, np.ndarray]]:
        if positions is None:
            raise UserError("BATCHING = 'packed': only a prompt that is a prefix can be packed")
        source, target = lengths["inputs"] + positions, lengths["targets"]
        row = self.packed_lengths or {"inputs": source, "targets": 8 * target}
        if row["inputs"] < source or row["targets"] < target:
            raise UserError(
                f"PACKED_LENGTHS = {dict(row)}: a row must hold one example, "
                f"{source} and {target} positions"
            )
        sizes = {"input_length": row["inputs"], "target_length": row["targets"]}
        batches = packed(examples, batch_size, prompt_length=positions, **sizes)
        return (
            pack(rows, prompt_length=positions, **sizes)
            for rows in itertools.islice(batches, start, None)
        )

    def _bucket_sizes(self, input_length: int, batch_size: int, multiple: int) -> dict[int, int]:
        """Rows per batch for each input length."""
        if self.kind == "padded":
            return {input_length: batch_size}
        bounds = tuple(self.bounds) or default_bounds(input_length)
        if self.tokens is None:
            return dict.fromkeys(bounds, batch_size)
        return constant_tokens(bounds, self.tokens, multiple)


def check_lengths(setting: str, lengths: Mapping[str, int]) -> None:
    """Raises UserError unless there is a possible length for "inputs" and "targets" each."""
    if set(lengths) != set(FEATURES):
        raise UserError(
            f'{setting} = {dict(lengths)}: must give a number of tokens for "inputs" and "targets"'
        )
    for name in FEATURES:
        whole_number(f"{setting}[{name!r}]", lengths[name], 1, MOST_TOKENS)
