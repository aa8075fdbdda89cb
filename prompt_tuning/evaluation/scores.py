"""Scores of predictions by the metrics of their task, and the no-information baseline."""

import collections
import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import PREDICTORS, predictors_for
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.model.tuned import TunedModel


def measure(data: EvalSet, predictions: Predictions) -> dict[str, float]:
    """Computes the task's metrics of predictions, as Python's floats.

    Raises:
      UserError: If there are more or fewer predictions than targets, one is no text, a metric is
        not a number, two have the same name, there is none, or the first one has another name than
        when the set was measured before.
    """
    if not isinstance(predictions, Predictions):
        raise UserError(
            f"{data.task}: predictions = {_shown(predictions)}; must be Predictions(texts)"
        )
    if len(predictions.texts) != len(data.targets):
        raise UserError(
            f"{data.task}: {len(predictions.texts)} predictions for {len(data.targets)} targets; "
            "must be one for each"
        )
    for row, text in enumerate(predictions.texts):
        if not isinstance(text, str):
            raise UserError(f"{data.task}: prediction {row + 1} is {_shown(text)}; must be a text")
    metrics: dict[str, float] = {}
    for metric_fn in data.metric_fns:
        # Lists of its own, which it may sort.
        values = metric_fn(list(data.targets), list(predictions.texts))
        function = getattr(metric_fn, "__name__", "")
        if not isinstance(values, Mapping):
            raise UserError(
                f"{data.task}: the metric {function} returned {_shown(values)}; must return a dict "
                "of numbers by name"
            )
        for name, value in values.items():
            if name in metrics:
                raise UserError(f"{data.task}: two metrics are called {name!r}; rename one")
            metrics[str(name)] = _number(value, f"{data.task}: the metric {name!r} of {function}")
    if not metrics:
        raise UserError(f"{data.task}: its metrics returned no number; there is nothing to compare")
    first, before = next(iter(metrics)), data.first_metric
    if before and before[0] != first:
        raise UserError(
            f"{data.task}: its first metric is {first!r} now and was {before[0]!r} before, so that "
            "steps cannot be compared; its function must return the same names each time"
        )
    before[:] = [first]
    return metrics


def _number(value: Any, where: str) -> float:
    """A number, an array of no dimensions or SeqIO's `Scalar` as a float."""
    scalar = getattr(value, "value", value)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        array = np.asarray(scalar)
        if array.ndim == 0 and array.dtype.kind not in "cSUmM":
            return float(scalar)
    raise UserError(f"{where} is {_shown(value)}; must be one number")


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} (type {type(value).__name__})"


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


def majority_share(data: EvalSet) -> float:
    """The share of rows whose target is the most frequent one: a constant's accuracy."""
    ((_, count),) = collections.Counter(data.targets).most_common(1)
    return count / len(data.targets)


def constant_answers(by_method: Mapping[str, Predictions]) -> dict[str, str]:
    """The answer of each evaluation method that gives several rows all the same one."""
    return {
        name: predictions.texts[0]
        for name, predictions in by_method.items()
        if len(predictions.texts) > 1 and len(set(predictions.texts)) == 1
    }


def constant_notes(task: str, by_method: Mapping[str, Predictions]) -> list[str]:
    """A line on each of `constant_answers`, to be shown beside the metrics."""
    return [
        f"warning: {task}: every answer by {name} is {text[:50]!r}; the metrics are a constant's"
        for name, text in constant_answers(by_method).items()
    ]


def most_frequent_name(data: EvalSet) -> str:
    """The name of `most_frequent` in a table."""
    return "majority class" if data.labels else "most frequent answer"
