"""Scores of predictions by the metrics of their task, and the no-information baseline."""

import collections
import statistics
from collections.abc import Iterable, Mapping, Sequence

from prompt_tuning.evaluation.predict import PREDICTORS, predictors_for
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.model.tuned import TunedModel


def measure(data: EvalSet, predictions: Predictions) -> dict[str, float]:
    """Computes the task's metrics of predictions."""
    metrics: dict[str, float] = {}
    for metric_fn in data.metric_fns:
        metrics |= metric_fn(data.targets, predictions.texts)
    return metrics


def predict(
    tuned: TunedModel, data: EvalSet, methods: Sequence[str], batch_size: int
) -> dict[str, Predictions]:
    """Predicts a split by each evaluation method.

    Args:
      tuned: Model to score.
      data: Split of a task.
      methods: Evaluation methods: names in `PREDICTORS`, or "auto".
      batch_size: Rows of a batch.
    """
    return {
        name: PREDICTORS[name](tuned, data, batch_size) for name in predictors_for(data, methods)
    }


def measure_each(data: EvalSet, by_method: Mapping[str, Predictions]) -> dict[str, float]:
    """Computes the task's metrics of each evaluation method's predictions, named METHOD/METRIC."""
    return {
        f"{name}/{metric}": value
        for name, predictions in by_method.items()
        for metric, value in measure(data, predictions).items()
    }


def score(
    tuned: TunedModel, data: EvalSet, methods: Sequence[str], batch_size: int
) -> dict[str, float]:
    """Computes the task's metrics by each evaluation method; arguments as for `predict`."""
    return measure_each(data, predict(tuned, data, methods, batch_size))


def majority(data: EvalSet, methods: Sequence[str]) -> dict[str, float]:
    """Computes the metrics of `most_frequent`, named as `score` names those of a model."""
    metrics = measure(data, most_frequent(data))
    return {
        f"{name}/{metric}": value
        for name in predictors_for(data, methods)
        for metric, value in metrics.items()
    }


def mean_score(scores: Iterable[Mapping[str, float]]) -> float:
    """The mean over tasks of each task's first metric, by which models are compared."""
    return statistics.fmean(next(iter(metrics.values())) for metrics in scores)


def most_frequent(data: EvalSet) -> Predictions:
    """Predicts the most frequent target for every row: the no-information baseline.

    For classification that is the majority class. For a task without label words it is one answer
    to every question: ReCoRD's metrics give it next to nothing; WSC's about the share of the
    majority label, since naming some other noun means "False".
    """
    ((target, _),) = collections.Counter(data.targets).most_common(1)
    return Predictions([target] * len(data.targets))


def most_frequent_name(data: EvalSet) -> str:
    """The name of `most_frequent` in a table."""
    return "majority class" if data.labels else "most frequent answer"
