"""Scores a tuned model on a task: by rank classification over the labels, or by generation."""

import collections
import statistics
from collections.abc import Iterable, Mapping, Sequence

from prompt_tuning.evaluation.predict import PREDICTORS, predictors_for
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.model.tuned import TunedModel


def measure(data: EvalSet, predictions: Predictions) -> dict[str, float]:
    """The task's metrics."""
    found: dict[str, float] = {}
    for metric in data.metric_fns:
        found |= metric(data.targets, predictions.texts)
    return found


def score(
    tuned: TunedModel, data: EvalSet, methods: Sequence[str], batch_size: int
) -> dict[str, float]:
    """The task's metrics by each method, named METHOD/METRIC.

    Args:
      tuned: the model.
      data: the task.
      methods: of `PREDICTORS`, or "auto".
      batch_size: rows of a batch.
    """
    return {
        f"{name}/{metric}": value
        for name in predictors_for(data, methods)
        for metric, value in measure(data, PREDICTORS[name](tuned, data, batch_size)).items()
    }


def majority(data: EvalSet, methods: Sequence[str]) -> dict[str, float]:
    """The metrics of `most_frequent`, under the names that `score` gives a model's."""
    metrics = measure(data, most_frequent(data))
    return {
        f"{name}/{metric}": value
        for name in predictors_for(data, methods)
        for metric, value in metrics.items()
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
