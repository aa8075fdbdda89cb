"""Initial prompts (Lester et al., 2021, section 3.2), arrays [P, D] float32.

An initialiser is a frozen dataclass that is called with a length P, a `Backbone` and a NumPy
generator.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Backbone
from prompt_tuning.runtime import distributed
from prompt_tuning.transformer import int8

SPECIAL_IDS = 3  # padding, end of sequence, unknown: not words


@runtime_checkable
class Initializer(Protocol):
    """Makes an initial prompt [P, D] float32."""

    def __call__(self, length: int, backbone: Backbone, rng: np.random.Generator) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform values on [low, high): the paper's are [-0.5, 0.5), the original code's [0, 0.5)."""

    low: float = -0.5
    high: float = 0.5

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"Uniform.low = {self.low}, Uniform.high = {self.high}: must be two numbers, low "
                "below high"
            )

    def __call__(self, length: int, backbone: Backbone, rng: np.random.Generator) -> np.ndarray:
        shape = (length, backbone.embedding.shape[1])
        return rng.uniform(self.low, self.high, shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SampledVocabulary:
    """Embeddings of distinct tokens, drawn from the `top` most common ones.

    A SentencePiece vocabulary is sorted by frequency, so the most common tokens are the first ids
    after the special ones.
    """

    top: int = 5_000

    def __call__(self, length: int, backbone: Backbone, rng: np.random.Generator) -> np.ndarray:
        end = min(SPECIAL_IDS + self.top, backbone.embedding.shape[0])
        if length > end - SPECIAL_IDS:
            raise ValueError(
                f"prompt length {length}: only {end - SPECIAL_IDS} tokens to sample from; "
                "shorten the prompt or raise SampledVocabulary.top"
            )
        ids = rng.choice(np.arange(SPECIAL_IDS, end), size=length, replace=False)
        return _rows(backbone, ids)


@dataclasses.dataclass(frozen=True)
class ClassLabels:
    """One row per label: the mean embedding of its sub-tokens; `rest` fills the other rows.

    Attributes:
      labels: label words; empty for those of the task.
      rest: initialiser of the rows after the labels (of all rows, for a task without labels).
    """

    labels: Sequence[str] = ()
    rest: Initializer = SampledVocabulary()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", choices.words("ClassLabels.labels", self.labels))

    def __call__(self, length: int, backbone: Backbone, rng: np.random.Generator) -> np.ndarray:
        labels = (self.labels or backbone.labels)[:length]
        rows = [
            _rows(backbone, _ids(backbone, label, "class label")).mean(axis=0, keepdims=True)
            for label in labels
        ]
        rest = self.rest(length - len(rows), backbone, rng)
        return np.concatenate([*rows, rest]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Text:
    """Embeddings of a text's tokens, cut to the prompt's length; `rest` fills further rows."""

    text: str = ""
    rest: Initializer = SampledVocabulary()

    def __call__(self, length: int, backbone: Backbone, rng: np.random.Generator) -> np.ndarray:
        ids = _ids(backbone, self.text, "prompt text")[:length]
        rest = self.rest(length - len(ids), backbone, rng)
        return np.concatenate([_rows(backbone, ids), rest]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class FromFile:
    """A saved prompt: `.npy` [P, D], `.safetensors` as written by a run, or a PEFT folder.

    Attributes:
      path: file or folder of the prompt.
      allow_other_backbone: whether a prompt is accepted whose card names another backbone.
    """

    path: str = ""
    allow_other_backbone: bool = False

    def __call__(self, length: int, backbone: Backbone, rng: np.random.Generator) -> np.ndarray:
        from prompt_tuning.checkpoint import card, prompts

        if not self.path:
            raise ValueError("FromFile.path is empty: set PROMPT_FILE to a saved prompt")
        shape = (length, backbone.embedding.shape[1])
        prompt = prompts.load(epath.Path(self.path), shape=shape)
        saved = card.read(self.path)
        if backbone.fingerprint is not None and not self.allow_other_backbone:
            card.check_backbone(saved, self.path, backbone.fingerprint)
            said = saved.trained_with if saved else None
            card.check_model(said, self.path, model=backbone.config)
        return prompt


def _rows(backbone: Backbone, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    rows = int8.rows(backbone.embedding, np.asarray(ids, int))
    return distributed.to_host(rows).astype(np.float32)


def _ids(backbone: Backbone, text: str, kind: str) -> list[int]:
    if backbone.encode is None:
        raise ValueError(f"{kind} {text!r}: a vocabulary is needed to initialise from text")
    ids = backbone.encode(text)
    if not ids:
        raise ValueError(f"{kind} {text!r} has no tokens in the vocabulary")
    return ids
