"""Scores a tuned model on a task: by rank classification over the labels, or by generation."""

import collections
import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax import Array

from prompt_tuning import decoding, distributed, sharding
from prompt_tuning.methods.base import Method
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
    scores = _map(_rank, tuned, data, batch_size, data.label_tokens)
    return Predictions([data.labels[i] for i in scores.argmax(axis=1)], scores)


def generate(tuned: TunedModel, data: EvalSet, batch_size: int) -> Predictions:
    """Predicts the greedily decoded text."""
    tokens = _map(_generate, tuned, data, batch_size, data.target_length)
    return Predictions([data.decode(row.tolist()) for row in tokens])


METHODS: Mapping[str, Callable[[TunedModel, EvalSet, int], Predictions]] = {
    "rank": rank_labels,
    "generate": generate,
}
AUTO = "auto"


def methods_for(data: EvalSet, names: Sequence[str]) -> list[str]:
    """`names` with "auto" as what it means for the task: "rank" if it has label words, else
    "generate".
    """
    meant = "rank" if data.labels else "generate"
    return list(dict.fromkeys(meant if name == AUTO else name for name in names))


def measure(data: EvalSet, predictions: Predictions) -> dict[str, float]:
    """The task's metrics."""
    found: dict[str, float] = {}
    for metric in data.metric_fns:
        found |= metric(data.targets, predictions.texts)
    return found


def score(
    tuned: TunedModel | None, data: EvalSet, methods: Sequence[str], batch_size: int
) -> dict[str, float]:
    """The task's metrics by each method, named METHOD/METRIC.

    Args:
      tuned: the model; None for `most_frequent`.
      data: the task.
      methods: of `METHODS`, or "auto".
      batch_size: rows of a batch.
    """
    return {
        f"{name}/{metric}": value
        for name in methods_for(data, methods)
        for metric, value in measure(
            data, METHODS[name](tuned, data, batch_size) if tuned else most_frequent(data)
        ).items()
    }


def mean_score(scores: Iterable[Mapping[str, float]]) -> float:
    """What tells better from worse: the mean over tasks of the first metric of each."""
    return statistics.fmean(next(iter(metrics.values())) for metrics in scores)


def most_frequent(data: EvalSet) -> Predictions:
    """The most frequent target for every row, what knowing nothing gives.

    Of classification that is the majority class. Of a task without label words it is one answer to
    every question: ReCoRD's metrics give it next to nothing; WSC's about the share of the majority
    label, since naming some other noun means "False".
    """
    ((most, _),) = collections.Counter(data.targets).most_common(1)
    return Predictions([most] * len(data.targets))


def most_frequent_name(data: EvalSet) -> str:
    """What `most_frequent` is called in a table."""
    return "majority class" if data.labels else "most frequent answer"


@functools.partial(jax.jit, static_argnames=("model",))
def _rank(
    model: T5,
    trained: Params,
    frozen: Params,
    tokens: Array,
    tasks: Array | None,
    targets: Array,
) -> Array:
    return decoding.score(model, join(trained, frozen), tokens, targets, tasks)


@functools.partial(jax.jit, static_argnames=("model", "length"))
def _generate(
    model: T5, trained: Params, frozen: Params, tokens: Array, tasks: Array | None, length: int
) -> Array:
    return decoding.greedy(model, join(trained, frozen), tokens, length, tasks)


def _map(
    function: Callable[..., Array],
    tuned: TunedModel,
    data: EvalSet,
    batch_size: int,
    argument: np.ndarray | int,
) -> np.ndarray:
    """Applies a jitted function to batches of inputs of similar length and puts the rows of the
    results in the order of the inputs.

    A batch is as long as the power of two that holds its longest row, from 32 to T: each shape is
    compiled once.
    """
    tokens, sites = data.encoder_input_tokens, tuned.model.sites
    task = sites.task_index(data.task) if isinstance(sites, Method) else None
    tasks = None if task is None else np.full(batch_size, task, np.int32)
    limit = tokens.shape[1]
    lengths = limit - np.argmax(tokens[:, ::-1] != 0, axis=1)
    order = np.argsort(-lengths, kind="stable")  # what does not fit into memory fails at once
    results = []
    with sharding.on(tuned.layout):
        for start in range(0, len(tokens), batch_size):
            rows = order[start : start + batch_size]
            longest = int(lengths[rows[0]])
            batch = tokens[rows, : min(limit, max(32, 1 << (longest - 1).bit_length()))]
            batch = np.pad(batch, ((0, batch_size - len(rows)), (0, 0)))
            placed = sharding.put_batch({"tokens": batch}, tuned.layout)["tokens"]
            model = tuned.model, tuned.trained, tuned.frozen
            results.append(function(*model, placed, tasks, argument))
    found = np.concatenate([distributed.to_host(rows) for rows in results])[: len(tokens)]
    return found[np.argsort(order)]
