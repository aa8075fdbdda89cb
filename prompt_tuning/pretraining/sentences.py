"""The corpus in sentences, and the labelled sets, without what is held back."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.pretraining import steered_tasks
from prompt_tuning.pretraining.steered_tasks import GENRES, choose, split_sentences
from prompt_tuning.pretraining.table import digest

__all__ = ["Document", "Documents", "choose"]


class Document(NamedTuple):
    """A text of the corpus with at least three sentences."""

    source: str
    sentences: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Documents:
    """Sentences by document, drawn by their number.

    Attributes:
      corpus: texts and labelled sets as the steered tasks read them.
    """

    corpus: steered_tasks.Corpus

    @classmethod
    def load(cls, folder: str, labelled: str) -> "Documents":
        """Reads the corpus and the labelled sets.

        Args:
          folder: Folder of the corpus.
          labelled: Folder of the labelled sets.

        Raises:
          FileNotFoundError: If `folder` holds no corpus.
          UserError: If `labelled` holds no labelled set.
        """
        corpus = steered_tasks.Corpus.load(Path(folder), Path(labelled))
        if not corpus.labelled or not corpus.verdicts:
            raise UserError(
                f"LABELLED = {labelled!r}: needs a set with the labels positive and negative, and "
                "one with others; link the four of docs/backbone.md into a folder of their own"
            )
        return cls(corpus)

    def without(self, held_back: Collection[str]) -> "Documents":
        """Returns the documents and labelled texts whose digests are not in `held_back`."""

        def kept(pairs: Sequence, text: int) -> list:
            return [pair for pair in pairs if digest(pair[text]) not in held_back]

        texts = kept(self.corpus.texts, 1)
        ends = np.cumsum([len(text) for _, text in texts])
        labelled = {name: kept(pairs, 0) for name, pairs in self.corpus.labelled.items()}
        return Documents(steered_tasks.Corpus(texts, ends, kept(self.corpus.verdicts, 0), labelled))

    @functools.cached_property
    def all(self) -> Sequence[Document]:
        """Every document with at least three sentences."""
        split = (
            Document(source, [s for part in text.split("\n\n") for s in split_sentences(part)])
            for source, text in self.corpus.texts
        )
        return [document for document in split if len(document.sentences) >= 3]

    @functools.cached_property
    def genres(self) -> Sequence[str]:
        """The genres that documents have, sorted."""
        return sorted({GENRES[source] for source, _ in self.all if source in GENRES})

    @functools.cached_property
    def verdicts(self) -> Sequence[tuple[Sequence[str], bool]]:
        """Sentences of reviews, and whether they praise."""
        return [(split_sentences(text) or [text], good) for text, good in self.corpus.verdicts]

    @property
    def labelled(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """(text, label words) of the labelled sets whose labels are no verdicts, by name."""
        return self.corpus.labelled

    def pick(self, rng: np.random.Generator, genre: str = "") -> Document:
        """A document, one with more sentences more often; of a genre, if one is given."""
        indices, ends = self._by_genre[genre]
        return self.all[indices[int(np.searchsorted(ends, rng.integers(ends[-1]), "right"))]]

    @functools.cached_property
    def _by_genre(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Indices of a genre's documents, and the cumulated number of their sentences."""
        lengths = np.array([len(document.sentences) for document in self.all])
        of = np.array([GENRES.get(document.source, "other") for document in self.all])
        chosen = {genre: np.flatnonzero(of == genre) for genre in self.genres}
        chosen[""] = np.arange(len(self.all))
        return {genre: (indices, np.cumsum(lengths[indices])) for genre, indices in chosen.items()}
