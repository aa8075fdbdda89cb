"""The reference for mixed batches: each row alone with its prompt, in NumPy, float64."""

from collections.abc import Sequence

import numpy as np
from numpy_t5 import NumpyT5

from prompt_tuning.t5 import T5Config
from prompt_tuning.testing import tiny_config, tiny_model
from prompt_tuning.transformer.paths import flatten

CONFIG = tiny_config()
BACKBONE = tiny_model().params
D = CONFIG.d_model
EOS = 1


def prompt(length: int, seed: int = 0) -> np.ndarray:
    """A random prompt [length, D]."""
    return np.random.default_rng([length, seed]).normal(size=(length, D)).astype(np.float32)


class Alone(NumpyT5):
    """The backbone with one prompt, for one row of tokens at a time."""

    def __init__(
        self, vectors: np.ndarray, leaves: dict | None = None, config: T5Config = CONFIG
    ) -> None:
        super().__init__(flatten(leaves or BACKBONE), config)
        self.vectors = vectors

    def prompt(self, stack, batch):
        return self.vectors if stack == "encoder" else super().prompt(stack, batch)

    def label_scores(self, ids: Sequence[int], targets: Sequence[Sequence[int]]) -> np.ndarray:
        """Log p [K] of the targets, each without its end token."""
        return np.array([self.log_p(ids, [*target, EOS]) for target in targets])

    def log_p(self, ids: Sequence[int], target: Sequence[int]) -> float:
        """Log p of a target, with its end token if it has one."""
        logits = self._logits(self._encoded(ids), target)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return float(log_p[np.arange(len(target)), target].sum())

    def probabilities(self, ids: Sequence[int], targets: Sequence[Sequence[int]]) -> np.ndarray:
        """The softmax [K] over `label_scores`."""
        odds = np.exp(self.label_scores(ids, targets))
        return odds / odds.sum()

    def greedy(self, ids: Sequence[int], length: int) -> list[int]:
        """The most likely tokens, to the end token or `length`."""
        encoded, tokens = self._encoded(ids), []
        while len(tokens) < length and EOS not in tokens:
            logits = self._logits(encoded, [*tokens, EOS])
            tokens.append(int(logits[-1].argmax()))
        return tokens

    def embedding(self, ids: Sequence[int]) -> np.ndarray:
        """The encoder's mean state [D] over the tokens, without the prompt's places."""
        states, _ = self._encoded(ids)
        return states[0, len(self.vectors) :].mean(axis=0)

    def _encoded(self, ids: Sequence[int]):
        return self.encode({"encoder_input_tokens": np.array([[*ids, EOS]])})

    def _logits(self, encoded, target: Sequence[int]) -> np.ndarray:
        tokens = np.array([target])
        inputs = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        batch = {"decoder_input_tokens": inputs, "decoder_target_tokens": tokens}
        return self.decode(*encoded, batch)[0]
