"""The pre-training mixture: choices by a teacher, pairs, cloze questions, T5's objectives.

A batch is a pure function of (seed, step), so a run resumes at any step with no state of its own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece

from prompt_tuning.pretraining import cloze
from prompt_tuning.pretraining.choices import Choices, written
from prompt_tuning.pretraining.pairs import Pairs
from prompt_tuning.pretraining.sentences import Documents, choose
from prompt_tuning.pretraining.steered_tasks import OTHER_TASKS, VERDICT_TASKS
from prompt_tuning.pretraining.table import Table
from prompt_tuning.transformer.vocabulary import EOS

Example = tuple[list[int], list[int]]  # input ids, target ids; no end tokens
SENTINELS = 100

KINDS = ("choices", "pairs", "cloze", "span_corruption", "prefix_lm", "steered")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Relative shares of the kinds of batch in one phase of pre-training.

    Attributes:
      until: First step after the phase.
      choices: Share of options in front of a text; see `pretraining.choices`.
      pairs: Share of pairs of sentences; see `pretraining.pairs`.
      cloze: Share of questions on a paragraph; see `pretraining.cloze`.
      span_corruption, prefix_lm: Shares of T5's objectives.
      steered: Share of the short tasks of `steered_tasks`.
    """

    until: int
    choices: float = 0.0
    pairs: float = 0.0
    cloze: float = 0.0
    span_corruption: float = 0.0
    prefix_lm: float = 0.0
    steered: float = 0.0


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Pre-training batches: `mixture(step)` is a pure function of seed and step.

    Every batch is of one kind, and all have about the same number of tokens.

    Attributes:
      corpus: Folder of the corpus.
      labelled: Folder of the labelled sets.
      table: Folder of the teacher's table.
      vocabulary: Path of the SentencePiece model.
      phases: Phases in order; the last one has no end.
      batch_size: Number of short choices, or of steered tasks, in a batch.
      choice_length: Input tokens of a short choice; pairs have 8/5 of them, in 5/8 as many rows.
      long_choices: Share of the batches of choices with half the rows and twice the length.
      answer_length: Target tokens of choices, pairs and steered tasks.
      input_length, target_length: Tokens of cloze questions and of T5's objectives.
      seed: Seed of all batches.
    """

    corpus: str
    labelled: str
    table: str
    vocabulary: str
    phases: Sequence[Phase]
    batch_size: int = 128
    choice_length: int = 40
    long_choices: float = 0.5
    answer_length: int = 8
    input_length: int = 128
    target_length: int = 32
    seed: int = 0

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step: arrays [B, T] and [B, L] int32 under T5X's feature names."""
        rng = np.random.default_rng([self.seed, step])
        phase = next((p for p in self.phases if step < p.until), self.phases[-1])
        shares = np.array([getattr(phase, kind) for kind in KINDS])
        kind = KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))]
        rows = max(1, self.batch_size * self.choice_length // self.input_length)
        match kind:
            case "choices":
                # A backbone that has seen short choices alone fails on longer ones.
                times = 2 if self.long_choices and rng.random() < self.long_choices else 1
                texts = self.choice_pairs(rng, max(1, self.batch_size // times))
                return self._short(texts, self.choice_length * times)
            case "pairs":
                size = max(1, self.batch_size * 5 // 8)
                return self._short(self._pairs.draw(rng, size), self.pair_length)
            case "steered":
                texts = [self._steered(rng) for _ in range(self.batch_size)]
                return self._short(texts, self.choice_length)
            case "cloze":
                examples = self._encoded([self._cloze(rng) for _ in range(rows)])
            case "span_corruption":
                examples = [self._span_corruption(rng) for _ in range(rows)]
            case _:
                examples = [self._prefix_lm(rng) for _ in range(rows)]
        return pad(examples, self.input_length, self.target_length)

    @property
    def pair_length(self) -> int:
        """Input tokens of a pair."""
        return self.choice_length * 8 // 5

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the batches, by setting."""
        fields = {
            f"Mixture.{f.name}": repr(getattr(self, f.name)) for f in dataclasses.fields(self)
        }
        return {"BATCH_SIZE": self.batch_size, **fields}

    def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches from a step on, without end."""
        return map(self, itertools.count(start))

    def choice_pairs(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Draws `count` choices of all kinds, each as its input and its answer."""
        return [(written(rng, c), c.answer) for c in self.choices().draw(rng, count)]

    def choices(self, measuring: bool = False) -> Choices:
        """Returns the source of choices; for `measuring`, one of texts that training leaves out."""
        return self._measured_choices if measuring else self._trained_choices

    def pairs(self, measuring: bool = False) -> Pairs:
        """Returns the source of pairs; for `measuring`, one of pairs that training leaves out."""
        return Pairs(self.teacher.pairs, measuring)

    @functools.cached_property
    def documents(self) -> Documents:
        """Corpus and labelled sets, without the texts that the table holds back."""
        return Documents.load(self.corpus, self.labelled).without(self.teacher.held_back)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without an end token."""
        return self._pieces.encode(list(texts))

    def _short(self, texts: Sequence[tuple[str, str]], length: int) -> dict[str, np.ndarray]:
        return pad(self._encoded(texts), length, self.answer_length)

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> list[Example]:
        sources = self.encode([source for source, _ in texts])
        return list(zip(sources, self.encode([target for _, target in texts]), strict=True))

    @functools.cached_property
    def _pieces(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_file=self.vocabulary)

    @functools.cached_property
    def teacher(self) -> Table:
        """The teacher's table."""
        table = Table.open(self.table)
        table.check_vocabulary(self.vocabulary)
        return table

    @functools.cached_property
    def _trained_choices(self) -> Choices:
        documents = self.documents  # first, so that a corpus that is missing is named first
        ids = self.encode(self.teacher.options)
        single = np.array([i for i, pieces in enumerate(ids) if len(pieces) == 1])
        return Choices(documents, self.teacher, single)

    @functools.cached_property
    def _measured_choices(self) -> Choices:
        return dataclasses.replace(self._trained_choices, measuring=True)

    @functools.cached_property
    def _pairs(self) -> Pairs:
        return self.pairs()

    def _window(self, rng: np.random.Generator, length: int) -> list[int]:
        """`length` consecutive tokens of a random place of the corpus, or a whole short text."""
        _, text = self.documents.corpus.pick(rng)
        characters = 6 * length
        start = int(rng.integers(max(1, len(text) - characters // 2)))
        if start:
            start = text.find(" ", start) + 1
        return self._pieces.encode(text[start : start + characters])[:length]

    def _span_corruption(self, rng: np.random.Generator) -> Example:
        # 15 % of `raw` tokens leave and one sentinel a span of 3 comes back.
        raw = int((self.input_length - 2) / (1 - 0.15 + 0.15 / 3))
        ids = self._window(rng, raw)
        first = self._pieces.vocab_size() + SENTINELS - 1
        return span_corruption(ids, noise_mask(len(ids), rng), first)

    def _prefix_lm(self, rng: np.random.Generator) -> Example:
        ids = self._window(rng, self.input_length + self.target_length - 2)
        split = max(1, len(ids) - self.target_length + 1, int(rng.integers(1, len(ids) + 1)))
        split = min(split, self.input_length - 1)
        return ids[:split], ids[split : split + self.target_length - 1]

    def _steered(self, rng: np.random.Generator) -> tuple[str, str]:
        while True:
            tasks = VERDICT_TASKS if rng.random() < 0.5 else OTHER_TASKS
            if pair := choose(rng, tasks)(self.documents.corpus, rng):
                return pair

    def _cloze(self, rng: np.random.Generator) -> tuple[str, str]:
        while True:
            if pair := cloze.draw(rng, self.documents):
                return pair


def pad(
    examples: Sequence[Example], input_length: int, target_length: int
) -> dict[str, np.ndarray]:
    """Examples to a batch: cut, ended by EOS and padded, targets shifted right for the decoder."""

    def rows(lists: list[list[int]], length: int) -> np.ndarray:
        out = np.zeros((len(lists), length), np.int32)
        for row, ids in zip(out, lists, strict=True):
            ids = [*ids[: length - 1], EOS]
            row[: len(ids)] = ids
        return out

    targets = rows([target for _, target in examples], target_length)
    return {
        "encoder_input_tokens": rows([source for source, _ in examples], input_length),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


def noise_mask(
    length: int, rng: np.random.Generator, density: float = 0.15, mean_span: float = 3.0
) -> np.ndarray:
    """[length] bool, True at noise: random spans as in T5, never the first token."""
    noise = int(np.clip(round(length * density), 1, max(1, length - 1)))
    spans = max(1, min(round(noise / mean_span), noise, length - noise))

    def segments(items: int) -> np.ndarray:
        cuts = np.sort(rng.choice(np.arange(1, items), size=spans - 1, replace=False))
        return np.diff(np.concatenate([[0], cuts, [items]]))

    lengths = np.stack([segments(length - noise), segments(noise)], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def span_corruption(ids: Sequence[int], noise: np.ndarray, first_sentinel: int) -> Example:
    """Replaces each noise span by a sentinel; the target is the sentinels with their spans."""
    source: list[int] = []
    target: list[int] = []
    sentinel = first_sentinel + 1
    for i, token in enumerate(ids):
        if noise[i]:
            if i == 0 or not noise[i - 1]:
                sentinel -= 1
                source.append(sentinel)
                target.append(sentinel)
            target.append(token)
        else:
            source.append(token)
    return source, target
