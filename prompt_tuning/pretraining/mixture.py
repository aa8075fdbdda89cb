"""The pre-training mixture of the embedded backbone: T5's objectives and short steered tasks.

A batch is a pure function of (seed, step), so a run resumes at any step with no state of its own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from prompt_tuning.pretraining.steered_tasks import OTHER_TASKS, VERDICT_TASKS, Corpus
from prompt_tuning.t5.vocabulary import EOS

Example = tuple[list[int], list[int]]  # input ids, target ids; no end tokens
SENTINELS = 100


@dataclasses.dataclass(frozen=True)
class Phase:
    """Weights of the kinds of batch in one phase of pre-training.

    Attributes:
      until: the phase lasts while step < until.
      span_corruption, prefix_lm, short: relative frequency of each kind of batch.
    """

    until: int
    span_corruption: float = 0.0
    prefix_lm: float = 0.0
    short: float = 0.0


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Pre-training batches, `mixture(step)`; all randomness comes from (seed, step).

    Attributes:
      corpus: folder of the corpus.
      supervised: folder of labelled sets, see `steered_tasks.read_supervised`; "" for none.
      vocabulary: SentencePiece model.
      phases: in order.
      batch_size: examples in a batch of the long objectives; short tasks take twice as many.
      input_length, target_length: of the long objectives.
      short_input_length, short_target_length: of the short tasks.
      verdict_share: share of the short examples that ask for a verdict or an opposite.
    """

    corpus: str
    vocabulary: str
    supervised: str = ""
    phases: Sequence[Phase] = (Phase(1, span_corruption=1.0),)
    batch_size: int = 32
    input_length: int = 128
    target_length: int = 32
    short_input_length: int = 64
    short_target_length: int = 8
    verdict_share: float = 0.5
    seed: int = 0

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step: arrays [B, T] and [B, L] int32 under T5X's feature names."""
        rng = np.random.default_rng([self.seed, step])
        phase = next((p for p in self.phases if step < p.until), self.phases[-1])
        weights = np.array([phase.span_corruption, phase.prefix_lm, phase.short])
        match rng.choice(3, p=weights / weights.sum()):
            case 0:
                make, lengths = self._span_corruption, (self.input_length, self.target_length)
            case 1:
                make, lengths = self._prefix_lm, (self.input_length, self.target_length)
            case _:
                make, lengths = self._short, (self.short_input_length, self.short_target_length)
        size = self.batch_size * (2 if make == self._short else 1)
        return pad([make(rng) for _ in range(size)], *lengths)

    def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches from a step on, without end."""
        return map(self, itertools.count(start))

    @functools.cached_property
    def _pieces(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_file=self.vocabulary)

    @functools.cached_property
    def _corpus(self) -> "Corpus":
        return Corpus.load(Path(self.corpus), Path(self.supervised) if self.supervised else None)

    def _encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def _window(self, rng: np.random.Generator, length: int) -> list[int]:
        """`length` consecutive tokens of a random place of the corpus, or a whole short text."""
        _, text = self._corpus.pick(rng)
        characters = 6 * length
        start = int(rng.integers(max(1, len(text) - characters // 2)))
        if start:
            start = text.find(" ", start) + 1
        return self._encode(text[start : start + characters])[:length]

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

    def _short(self, rng: np.random.Generator) -> Example:
        tasks = VERDICT_TASKS if rng.random() < self.verdict_share else OTHER_TASKS
        while True:
            task = tasks[int(rng.integers(len(tasks)))]
            if pair := task(self._corpus, rng):
                return self._encode(pair[0]), self._encode(pair[1])


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
