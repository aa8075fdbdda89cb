"""Answers of a served model; an ensemble's prompts vote on one."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Classification:
    """A label with probabilities.

    Attributes:
      label: Most probable label; for an ensemble the one that most prompts choose (Lester et al.,
        2021, section 6), and among ties the one with the highest mean probability.
      probabilities: Probability of each of the task's labels; for an ensemble the mean over its
        prompts.
      votes: Number of prompts that choose each label.
    """

    label: str
    probabilities: Mapping[str, float]
    votes: Mapping[str, int]

    @classmethod
    def of(cls, labels: Sequence[str], scores: np.ndarray) -> "Classification":
        """The answer from log p of each label by each prompt, [prompts, labels]."""
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
    """A generated text.

    Attributes:
      text: Generated text; for an ensemble the one that most prompts generate, and among ties the
        one with the highest score.
      score: Log p of the text; from beam search divided by the length penalty.
      tokens: Ids of the generated tokens, with the one that ended the text.
      token_scores: Log p of each of them; empty from beam search.
    """

    text: str
    score: float
    tokens: tuple[int, ...] = ()
    token_scores: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, texts: Sequence[str], scores: np.ndarray, tokens: np.ndarray, log_p: np.ndarray
    ) -> "Generation":
        """The answer from each prompt's text, score [prompts], tokens and log p [prompts, L].

        The log p of beam search are [prompts, 0].
        """
        votes = collections.Counter(texts)
        best = max(range(len(texts)), key=lambda i: (votes[texts[i]], scores[i]))
        count = int(np.flatnonzero(tokens[best]).max(initial=-1)) + 1
        kept = (part[best][:count].tolist() for part in (tokens, log_p))
        return cls(texts[best], float(scores[best]), *map(tuple, kept))

    def __str__(self) -> str:
        return self.text
