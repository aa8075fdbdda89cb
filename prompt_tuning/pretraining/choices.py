"""Choices: a few words in front of a text, one of which is the answer.

`science, rugby, tax: TEXT` -> `rugby`. A soft prompt that starts from the label words asks for just
that, so a backbone that has learnt it can be tuned by a prompt alone (docs/backbone.md).

A kind of choice is a method of `Choices` that returns a `Choice`, or None where the random draw
gives none.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.pretraining.sentences import Documents, choose
from prompt_tuning.pretraining.table import KEPT_FOR_MEASURING, Table

KINDS: Mapping[str, float] = MappingProxyType(
    {
        "teacher": 0.74,
        "labelled": 0.07,
        "verdict": 0.08,
        "masked": 0.04,
        "continuation": 0.03,
        "genre": 0.04,
    }
)
LEADS = ("", "", "options: ", "choose: ", "which? ", "topic? ")
SEPARATORS = (", ", " ", " or ", " | ", "; ", " / ")
TAILS = (": ", " : ", ". ", " ", "? ")
VERDICTS = (
    ("positive", "negative"), ("good", "bad"), ("great", "terrible"), ("yes", "no"),
    ("happy", "angry"), ("excellent", "awful"), ("wonderful", "horrible"), ("praise", "blame"),
    ("love", "hate"), ("pleased", "disappointed"), ("up", "down"), ("right", "wrong"),
)  # fmt: skip
MAX_DECOYS = 5
NEAREST = 40  # how far down the list of near options an answer is looked for
NEAR_MISSES = 60
SAMPLE = 8_000  # documents by which usual words are told from rare and common ones
MARGINS = (0.05, 0.10, 0.15)  # by which a decoy's cosine is below the answer's
SINGLE = 0.85  # share of choices whose options are one piece each: copying is learnt on those
HIDDEN = 0.7  # share of choices whose answer does not stand in the text
MAX_FAILURES = 1_000  # draws without a choice for each choice that is wanted
POOL = 300  # options among which the nearest is looked for
GROUP = 16  # choices that share a pool

_WORD = re.compile(r"\b[a-z]{4,}\b")


class Choice(NamedTuple):
    """Text, answer and the other options."""

    text: str
    answer: str
    decoys: Sequence[str]

    def options(self, rng: np.random.Generator) -> list[str]:
        """Answer and decoys once each, in random order."""
        options = list(dict.fromkeys([self.answer, *self.decoys]))
        rng.shuffle(options)
        return options


@dataclasses.dataclass(frozen=True)
class Choices:
    """Draws choices of each kind.

    Attributes:
      documents: Corpus and labelled sets.
      table: The teacher's table.
      single: Indices of the options that are a single piece of the vocabulary, [n] int.
      measuring: Whether to draw from the windows that training leaves out, and from no others.
    """

    documents: Documents
    table: Table
    single: np.ndarray
    measuring: bool = False

    def draw(self, rng: np.random.Generator, count: int) -> list[Choice]:
        """Draws `count` choices of all kinds, in the shares of `KINDS`."""
        kinds = list(KINDS)
        shares = np.array([KINDS[kind] for kind in kinds])
        counts = rng.multinomial(count, shares / shares.sum())
        return [
            choice
            for kind, wanted in zip(kinds, counts, strict=True)
            for choice in self.of_kind(kind, rng, int(wanted))
        ]

    def of_kind(self, kind: str, rng: np.random.Generator, count: int) -> list[Choice]:
        """Draws `count` choices of one kind.

        Raises:
          UserError: If the corpus gives none.
        """
        if kind == "teacher":
            return self._teacher(rng, count)
        draw = getattr(self, f"_{kind}")
        choices: list[Choice] = []
        failed = 0
        while len(choices) < count:
            if (choice := draw(rng)) is not None:
                choices.append(choice)
            elif (failed := failed + 1) > MAX_FAILURES * count:
                raise UserError(
                    f"CORPUS: no choices of the kind {kind!r} in {failed} draws; give a corpus of "
                    "more documents"
                )
        return choices

    def _teacher(self, rng: np.random.Generator, count: int) -> list[Choice]:
        choices: list[Choice] = []
        while len(choices) < count:
            wanted = min(GROUP, count - len(choices))
            choices += self._group(rng, wanted)
        return choices

    def _group(self, rng: np.random.Generator, count: int) -> list[Choice]:
        """Up to `count` choices by the teacher, from one pool of options."""
        if rng.random() < SINGLE:
            pool = self.single[rng.integers(len(self.single), size=POOL)]
        else:
            pool = rng.integers(len(self.table.options), size=POOL)
        pool = np.unique(pool)
        windows = self._windows(rng, count)
        vectors = self.table.window_vectors[windows].astype(np.float32)
        near = vectors @ self.table.option_vectors[pool].astype(np.float32).T
        orders = np.argsort(-near, axis=1)
        choices = (
            self._nearest(rng, self.table.texts[window], pool[order], row[order])
            for window, order, row in zip(windows, orders, near, strict=True)
        )
        return [choice for choice in choices if choice is not None]

    def _windows(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Indices of windows for training, or for measuring."""
        every = KEPT_FOR_MEASURING
        blocks = rng.integers(len(self.table.texts) // every, size=count)
        inside = 0 if self.measuring else rng.integers(1, every, size=count)
        return blocks * every + inside

    def _nearest(
        self, rng: np.random.Generator, text: str, pool: np.ndarray, near: np.ndarray
    ) -> Choice | None:
        """A near option and decoys; `pool` and `near` are sorted, the nearest first."""
        options, low = self.table.options, f" {text.lower()} "
        hidden, best = rng.random() < HIDDEN, -1
        for place in range(min(NEAREST, len(pool))):
            if hidden and options[pool[place]] in low:
                continue
            best = place
            if rng.random() < 0.5:  # among the nearest, not always the first
                break
        if best < 0:
            return None
        first = int(np.searchsorted(-near, -(near[best] - choose(rng, MARGINS)), "right"))
        last = min(len(pool), first + NEAR_MISSES) if rng.random() < 0.5 else len(pool)
        count = _decoys(rng)
        if last - first < count:
            return None
        decoys = [options[pool[place]] for place in rng.integers(first, last, size=count)]
        return Choice(text, options[pool[best]], decoys)

    def _labelled(self, rng: np.random.Generator) -> Choice:
        name = choose(rng, self._names)
        text, label = choose(rng, self.documents.labelled[name])
        return Choice(text, label, [choose(rng, self._labels[name]) for _ in range(_decoys(rng))])

    def _verdict(self, rng: np.random.Generator) -> Choice:
        sentences, praised = choose(rng, self.documents.verdicts)
        count = int(rng.integers(1, 4))
        last = max(0, len(sentences) - count)
        start = last if rng.random() < 0.5 else int(rng.integers(last + 1))
        praise, blame = choose(rng, VERDICTS)
        answer, decoy = (praise, blame) if praised else (blame, praise)
        return Choice(" ".join(sentences[start : start + count]), answer, [decoy])

    def _masked(self, rng: np.random.Generator) -> Choice | None:
        sentence = choose(rng, self.documents.pick(rng).sentences)
        words = self._usual(sentence)
        if not words:
            return None
        answer = choose(rng, words)
        text = re.sub(rf"\b{answer}\b", "_", sentence, flags=re.IGNORECASE)
        return self._among_words(rng, text, answer, set(words))

    def _continuation(self, rng: np.random.Generator) -> Choice | None:
        sentences = self.documents.pick(rng).sentences
        count = int(rng.integers(1, 4))
        start = int(rng.integers(max(1, len(sentences) - count)))
        text = " ".join(sentences[start : start + count])
        here = set(_WORD.findall(text.lower()))
        after = sentences[start + count : start + count + 4]
        answers = [word for word in self._usual(" ".join(after)) if word not in here]
        if not answers:
            return None
        around = " ".join(sentences[max(0, start - 8) : start + count + 12])
        seen = here | set(_WORD.findall(around.lower()))
        return self._among_words(rng, text, choose(rng, answers), seen)

    def _genre(self, rng: np.random.Generator) -> Choice:
        genre = choose(rng, self.documents.genres)
        sentences = self.documents.pick(rng, genre).sentences
        start = int(rng.integers(len(sentences)))
        decoys = [choose(rng, self.documents.genres) for _ in range(_decoys(rng))]
        return Choice(" ".join(sentences[start : start + 2]), genre, decoys)

    def _among_words(
        self, rng: np.random.Generator, text: str, answer: str, without: set[str]
    ) -> Choice | None:
        """A choice whose decoys are words of other documents."""
        decoys = []
        for _ in range(_decoys(rng)):
            other = self._usual(choose(rng, self.documents.pick(rng).sentences))
            decoys += [word for word in other if word not in without][:1]
        return Choice(text, answer, decoys) if decoys else None

    def _usual(self, text: str) -> list[str]:
        return [word for word in _WORD.findall(text.lower()) if word in self._usual_words]

    @functools.cached_property
    def _usual_words(self) -> set[str]:
        """Words that are in at most 6 % of a sample of documents, and in more than 3 of 8,000."""
        rng, counts = np.random.default_rng(0), Counter[str]()
        documents = self.documents.all
        sample = rng.permutation(len(documents))[:SAMPLE]
        for i in sample:
            counts.update(set(_WORD.findall(" ".join(documents[i].sentences).lower())))
        low, high = 4 * len(sample) // SAMPLE, max(1, 0.06 * len(sample))
        return {word for word, count in counts.items() if low <= count <= high}

    @functools.cached_property
    def _names(self) -> list[str]:
        return sorted(self.documents.labelled)

    @functools.cached_property
    def _labels(self) -> dict[str, list[str]]:
        rows = self.documents.labelled.items()
        return {name: sorted({label for _, label in pairs}) for name, pairs in rows}


def _decoys(rng: np.random.Generator) -> int:
    return int(rng.integers(1, MAX_DECOYS + 1))


def written(rng: np.random.Generator, choice: Choice) -> str:
    """The input of a choice: its options in front, in one of many forms."""
    options = choose(rng, SEPARATORS).join(choice.options(rng))
    return f"{choose(rng, LEADS)}{options}{choose(rng, TAILS)}{choice.text}"
