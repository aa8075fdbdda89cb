"""Scores a tuned model on a task: by rank classification over the labels, or by generation."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

# Of targets and predictions; SeqIO tells kinds of metric apart by the names of these parameters.
MetricFn = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class EvalSet:
    """A split of a task, in memory.

    Attributes:
      task, split: their names.
      inputs: N texts.
      targets: N texts.
      encoder_input_tokens: [N, T] int32.
      labels: the K label words of a classification task, else empty.
      label_tokens: [K, L] int32, each label with its end token, then 0.
      target_length: L, most tokens to generate.
      metric_fns: from targets and predictions to named numbers.
      decode: token ids to text.
    """

    task: str
    split: str
    inputs: Sequence[str]
    targets: Sequence[str]
    encoder_input_tokens: np.ndarray
    labels: Sequence[str]
    label_tokens: np.ndarray
    target_length: int
    metric_fns: Sequence[MetricFn]
    decode: Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answers on an `EvalSet`.

    Attributes:
      texts: N predictions.
      scores: [N, K] log-probabilities of the labels; None when generated.
    """

    texts: Sequence[str]
    scores: np.ndarray | None = None
