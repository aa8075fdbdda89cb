"""Scores a tuned model on a task: by rank classification over the labels, or by generation."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax import Array

from prompt_tuning import decoding, sharding
from prompt_tuning.params import Params, join
from prompt_tuning.t5.network import T5
from prompt_tuning.trainer import TunedModel

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


def rank_labels(tuned: TunedModel, data: EvalSet, batch_size: int) -> Predictions:
    """Predicts the label of highest log-probability.

    Raises:
      ValueError: if the task has no labels.
    """
    if not data.labels:
        raise ValueError(f"{data.task}: rank classification needs CLASS_LABELS")
    scores = _map(_rank, tuned, data.encoder_input_tokens, batch_size, data.label_tokens)
    return Predictions([data.labels[i] for i in scores.argmax(axis=1)], scores)


def generate(tuned: TunedModel, data: EvalSet, batch_size: int) -> Predictions:
    """Predicts the greedily decoded text."""
    tokens = _map(_generate, tuned, data.encoder_input_tokens, batch_size, data.target_length)
    return Predictions([data.decode(row.tolist()) for row in tokens])


METHODS: Mapping[str, Callable[[TunedModel, EvalSet, int], Predictions]] = {
    "rank": rank_labels,
    "generate": generate,
}


def measure(data: EvalSet, predictions: Predictions) -> dict[str, float]:
    """The task's metrics."""
    found: dict[str, float] = {}
    for metric in data.metric_fns:
        found |= metric(data.targets, predictions.texts)
    return found


def majority(data: EvalSet) -> Predictions:
    """The most frequent target for every row: what knowing nothing gives."""
    ((most, _),) = collections.Counter(data.targets).most_common(1)
    return Predictions([most] * len(data.targets))


@functools.partial(jax.jit, static_argnames=("model",))
def _rank(model: T5, trained: Params, frozen: Params, tokens: Array, targets: Array) -> Array:
    return decoding.score(model, join(trained, frozen), tokens, targets)


@functools.partial(jax.jit, static_argnames=("model", "length"))
def _generate(model: T5, trained: Params, frozen: Params, tokens: Array, length: int) -> Array:
    return decoding.greedy(model, join(trained, frozen), tokens, length)


def _map(
    function: Callable[..., Array],
    tuned: TunedModel,
    tokens: np.ndarray,
    batch_size: int,
    argument: np.ndarray | int,
) -> np.ndarray:
    """Applies a jitted function to batches of one shape and joins the rows of the results."""
    results = []
    with sharding.on(tuned.mesh):
        for start in range(0, len(tokens), batch_size):
            rows = tokens[start : start + batch_size]
            rows = np.pad(rows, ((0, batch_size - len(rows)), (0, 0)))
            placed = sharding.put_batch({"tokens": rows}, tuned.mesh)["tokens"]
            results.append(function(tuned.model, tuned.trained, tuned.frozen, placed, argument))
    return np.concatenate([np.asarray(rows) for rows in results])[: len(tokens)]
