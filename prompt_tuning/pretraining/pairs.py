"""Pairs: two sentences, and whether they say the same, by the teacher's similarity."""

from collections.abc import Sequence

import numpy as np

from prompt_tuning.pretraining.sentences import choose
from prompt_tuning.pretraining.table import KEPT_FOR_MEASURING, Pair

SAME, DIFFERENT = 0.85, 0.65  # cosines: at least, and at most; pairs between them are left out
WORDS = (
    ("same", "different"), ("yes", "no"), ("similar", "different"), ("equal", "other"),
    ("true", "false"), ("right", "wrong"), ("equivalent", "not equivalent"),
)  # fmt: skip
LEADS = ("", "", "same meaning? ", "compare: ", "choose: ")
FORMS = ("{} | {}", "sentence1: {} sentence2: {}", "{} # {}", "first: {} second: {}")


class Pairs:
    """Draws examples of pairs.

    Args:
      pairs: Pairs with the teacher's similarity.
      measuring: Whether to draw from those that training leaves out, and from no others.
    """

    def __init__(self, pairs: Sequence[Pair], measuring: bool = False) -> None:
        kept = [p for i, p in enumerate(pairs) if (i % KEPT_FOR_MEASURING == 0) == measuring]
        self._same = [pair for pair in kept if pair.similarity >= SAME]
        self._different = [pair for pair in kept if pair.similarity <= DIFFERENT]

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Draws `count` examples (input, answer); both answers are equally likely."""
        return [self._one(rng) for _ in range(count)]

    def _one(self, rng: np.random.Generator) -> tuple[str, str]:
        same = rng.random() < 0.5
        pair = choose(rng, self._same if same else self._different)
        words = choose(rng, WORDS)
        options = words if rng.random() < 0.5 else words[::-1]
        asked = choose(rng, (", ", " or ", " | ")).join(options)
        compared = choose(rng, FORMS).format(pair.first, pair.second)
        return f"{choose(rng, LEADS)}{asked}: {compared}", words[0] if same else words[1]
