"""Runs batches by programs that were compiled before they were needed."""

import collections
import dataclasses
import itertools
import math
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.decoding import batches, draw_numbers
from prompt_tuning.decoding.batches import Executable, Search, power
from prompt_tuning.server.scheduler import Batch
from prompt_tuning.serving import bank
from prompt_tuning.serving.model import Model
from prompt_tuning.transformer.vocabulary import EOS

MOST_LABEL_PADDING = 4  # of label positions, until the exact program is compiled
ALTERNATIVES = 5  # most likely tokens that can be asked for at each step
STOPS = 4  # tokens that end a text; all of them the end token, texts are cut at others afterwards


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the rows of a batch have in common.

    Attributes:
      operation: "classify", "generate" or "embed".
      group: That of their prompts, see `bank.group`.
      sizes: Labels and tokens of each, (K, L), or most tokens to generate, (L,).
    """

    operation: str
    group: int
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Input:
    """A row's part of a batch.

    Attributes:
      ids: Token ids with the end token.
      slot: Slot of its prompt in the bank.
      arrays: Its part of the further arrays of the operation, see `decoding.batches`; targets may
        be smaller than the program's.
    """

    ids: Sequence[int]
    slot: int
    arrays: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Sizes that batches are padded to, ascending.

    Attributes:
      rows, tokens: Of a batch.
      lengths: Most tokens to generate.
    """

    rows: tuple[int, ...]
    tokens: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch_size: int, input_length: int, max_tokens: int, shards: int = 1) -> "Shapes":
        """Powers of two, and of three times two among the larger numbers of rows.

        Args:
          batch_size, input_length, max_tokens: The largest sizes.
          shards: Number of parts that the rows of a batch are divided into.
        """
        rows = sorted({*_doubled(1, batch_size), *_doubled(24, batch_size)})
        return cls(
            tuple(count for count in rows if count % shards == 0),
            tuple(_doubled(batches.SHORTEST, input_length)),
            (*(length for length in (8, 32, 128, 512) if length < max_tokens), max_tokens),
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: an operation for batches of one shape."""

    operation: str
    rows: int
    tokens: int
    places: int
    sizes: tuple[int, ...] = ()

    def covers(self, other: "Program") -> bool:
        """Whether it can run the batches of another one, with more padding."""
        mine, others = ((p.rows, p.tokens, p.places, *p.sizes) for p in (self, other))
        return self.operation == other.operation and all(
            a >= b for a, b in zip(mine, others, strict=True)
        )

    @property
    def cost(self) -> int:
        """Number of positions that it computes."""
        return self.rows * (self.tokens + self.places + math.prod(self.sizes))


class Device:
    """A model and its programs; one thread runs batches, others compile.

    A batch is run by the smallest program that exists. If that is larger than the batch, the exact
    one is compiled by `build_wanted`, so that nothing waits for it.

    Attributes:
      shapes: Sizes that batches are padded to.
      missing: Number of batches that were run by a larger program than the exact one.
    """

    def __init__(self, model: Model, shapes: Shapes) -> None:
        self.model, self.shapes, self.missing = model, shapes, 0
        self._programs: dict[Program, Executable] = {}
        self._wanted: collections.Counter[Program] = collections.Counter()
        self._places: frozenset[int] = frozenset()
        self._label_sizes: frozenset[tuple[int, int]] = frozenset()
        self._lock, self._want = threading.Lock(), threading.Event()

    @property
    def wanted(self) -> int:
        """Number of programs that batches lacked and that are not compiled yet."""
        return len(self._wanted)

    @property
    def compiled(self) -> int:
        """Number of programs compiled so far."""
        return self.model.compile_count

    def admit(self, longest: int, labels: tuple[int, int] | None) -> None:
        """Compiles what the rows of a task need, unless it exists; takes seconds to minutes.

        Args:
          longest: Length of its longest prompt.
          labels: Number of its labels and of the tokens of the longest; None without labels.
        """
        room = self.model.task_set.bank.prompts.shape[1]
        with self._lock:
            all_places, all_sizes = self._places, self._label_sizes
            if not any(self._same_group(each, longest) for each in all_places):
                all_places |= {bank.places(longest, room)}
            if labels is not None and not self._is_close(all_sizes, label_sizes(*labels)):
                all_sizes |= {label_sizes(*labels)}
            kinds: list[tuple[str, tuple[int, ...]]] = [
                ("embed", ()),
                ("generate", (self.shapes.lengths[-1],)),
                *(("classify", sizes) for sizes in sorted(all_sizes)),
            ]
            rows, tokens = self.shapes.rows, self.shapes.tokens
            for places, (operation, sizes) in itertools.product(sorted(all_places), kinds):
                for row, token in itertools.product({rows[0], rows[-1]}, {tokens[0], tokens[-1]}):
                    self._build(Program(operation, row, token, places, sizes))
            self._places, self._label_sizes = all_places, all_sizes

    def has_labels(self, count: int, length: int) -> bool:
        """Whether there are programs for this many labels of this many tokens."""
        return any(count <= k and length <= tokens for k, tokens in self._label_sizes)

    def run(self, batch: Batch) -> list[tuple[np.ndarray, ...]]:
        """The arrays of each row of a batch; compiles nothing."""
        kind, inputs = batch.kind, [row.payload.input for row in batch.rows]
        assert isinstance(kind, Kind)
        rows, tokens, longest = batch.shape
        places = min(each for each in self._places if self._same_group(each, longest))
        exact = Program(kind.operation, rows, tokens, places, kind.sizes)
        program = exact if exact in self._programs else self._larger(exact)
        arrays = _arrays(program, inputs)
        results = self._programs[program](self.model.task_set.params, *arrays)
        return [tuple(result[i] for result in results) for i in range(len(inputs))]

    def build_wanted(self, stopped: Callable[[], bool]) -> None:
        """Compiles the programs that batches lacked, those first that were wanted most often."""
        while not stopped():
            if not self._want.wait(0.2):
                continue
            with self._lock:
                if not self._wanted:
                    self._want.clear()
                    continue
                [(program, _)] = self._wanted.most_common(1)
                self._build(program)
                del self._wanted[program]

    def _is_close(self, all_sizes: Collection[tuple[int, int]], sizes: tuple[int, int]) -> bool:
        """Whether there are programs for labels of this size that cost little more."""
        count, length = sizes
        return any(
            k >= count and tokens >= length and k * tokens <= MOST_LABEL_PADDING * count * length
            for k, tokens in all_sizes
        )

    def _same_group(self, places: int, longest: int) -> bool:
        return places >= longest and bank.group(places) == bank.group(longest)

    def _larger(self, exact: Program) -> Program:
        self.missing += 1
        self._wanted[exact] += 1
        self._want.set()
        covering = [program for program in list(self._programs) if program.covers(exact)]
        return min(covering, key=lambda program: program.cost)

    def _build(self, program: Program) -> None:
        if program in self._programs:
            return
        function, settings = _functions(program, self.model)
        example = Input([1], 0, _example(program))
        self._programs[program] = self.model.executable(
            function, settings, program.places, *_arrays(program, [example])
        )


def label_sizes(count: int, length: int) -> tuple[int, int]:
    """The shape (K, L) that labels are padded to."""
    return power(count, 2), power(length, 2)


def generation_arrays(
    limit: int, seed: int, temperature: float, top_k: int, top_p: float, alternatives: bool
) -> tuple[np.ndarray, ...]:
    """A row's part of the arrays of `batches.generate`."""
    return (
        np.array(limit, np.int32),
        np.full(STOPS, EOS, np.int32),
        np.array(0.0, np.float32),
        np.array([seed, 0], np.uint32),
        *map(np.array, draw_numbers(temperature, top_k, top_p)),
        np.array(alternatives, bool),
    )


def _functions(program: Program, model: Model) -> tuple[batches.Function, Any]:
    if program.operation == "classify":
        return batches.classify, model.rank_bytes
    if program.operation == "generate":
        return batches.generate, Search(program.sizes[0], alternatives=ALTERNATIVES)
    return batches.embed, None


def _example(program: Program) -> tuple[np.ndarray, ...]:
    if program.operation == "classify":
        return (np.zeros(program.sizes, np.int32),)
    return generation_arrays(1, 0, 0.0, 0, 1.0, False) if program.operation == "generate" else ()


def _arrays(program: Program, inputs: Sequence[Input]) -> list[np.ndarray]:
    """Tokens [B, T], slots [B] and further arrays [B, ...]; missing rows repeat the last one."""
    inputs = [*inputs, *[inputs[-1]] * (program.rows - len(inputs))]
    tokens = np.zeros((program.rows, program.tokens), np.int32)
    for row, each in zip(tokens, inputs, strict=True):
        row[: len(each.ids)] = each.ids
    slots = np.array([each.slot for each in inputs], np.int32)
    further = [
        np.stack(parts) for parts in zip(*(_padded(program, i) for i in inputs), strict=True)
    ]
    return [tokens, slots, *further]


def _padded(program: Program, each: Input) -> tuple[np.ndarray, ...]:
    if program.operation != "classify":
        return each.arrays
    (targets,) = each.arrays
    padding = [(0, size - part) for size, part in zip(program.sizes, targets.shape, strict=True)]
    return (np.pad(targets, padding),)


def _doubled(first: int, last: int) -> Iterable[int]:
    """`first`, twice it, and so on below `last`, and `last`."""
    count = first
    while count < last:
        yield count
        count *= 2
    yield last
