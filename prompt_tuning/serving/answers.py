"""What a served model answers, and how the answers of an ensemble's prompts become one."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Classification:
    """A label word, and how sure it is.

    Attributes:
      label: the most probable; of an ensemble the one that most prompts choose (Lester et al.,
        2021, section 6), of these the one of the highest mean probability.
      probabilities: by label, among the task's labels; of an ensemble the mean.
      votes: by label, how many prompts choose it.
    """

    label: str
    probabilities: Mapping[str, float]
    votes: Mapping[str, int]

    @classmethod
    def of(cls, labels: Sequence[str], scores: np.ndarray) -> "Classification":
        """From log p of each label by each prompt, [prompts, labels]."""
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        mean = (odds / odds.sum(axis=1, keepdims=True)).mean(axis=0)
        votes = np.bincount(scores.argmax(axis=1), minlength=len(labels))
        best = max(range(len(labels)), key=lambda i: (votes[i], mean[i]))
        probabilities = dict(zip(labels, mean.tolist(), strict=True))
        return cls(labels[best], probabilities, dict(zip(labels, votes.tolist(), strict=True)))

    def __str__(self) -> str:
        return self.label


@dataclasses.dataclass(frozen=True)
class Generation:
    """A text that was made.

    Attributes:
      text: of an ensemble the one that most prompts make, of these the one of the highest score.
      score: its log p; of beam search over the length penalty.
    """

    text: str
    score: float

    @classmethod
    def of(cls, texts: Sequence[str], scores: np.ndarray) -> "Generation":
        """From the text of each prompt and its score."""
        votes = collections.Counter(texts)
        best = max(range(len(texts)), key=lambda i: (votes[texts[i]], scores[i]))
        return cls(texts[best], float(scores[best]))

    def __str__(self) -> str:
        return self.text
