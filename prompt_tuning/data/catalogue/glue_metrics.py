"""Metrics of GLUE and SuperGLUE, under T5's names, from 0 to 1 (correlations from -1).

Wang et al., 2018 (arXiv 1804.07461) and 2019 (arXiv 1905.00537). Their arguments are targets and
predictions after `catalogue.postprocess`; an invalid prediction is wrong.
"""

import collections
import re
import statistics
import string
from collections.abc import Callable, Mapping, Sequence

import scipy.stats
import sklearn.metrics

from prompt_tuning.data.catalogue.postprocess import Grouped
from prompt_tuning.errors import UserError

SUPER_GLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")

Results = Mapping[str, Mapping[str, float]]


def accuracy(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Share of predictions equal to their target."""
    return {"accuracy": float(sklearn.metrics.accuracy_score(targets, predictions))}


def f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """F1 of label 1, for two labels."""
    valid = _wrong_if_invalid(targets, predictions)
    return {"f1": float(sklearn.metrics.f1_score(targets, valid, zero_division=0))}


def mean_3class_f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Unweighted mean of the F1 of three labels."""
    score = sklearn.metrics.f1_score(
        targets, predictions, labels=range(3), average="macro", zero_division=0
    )
    return {"mean_3class_f1": float(score)}


def matthews_corrcoef(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Matthews correlation of two labels; 0 if all predictions are the same."""
    valid = _wrong_if_invalid(targets, predictions)
    return {"matthews_corrcoef": float(sklearn.metrics.matthews_corrcoef(targets, valid))}


def pearson_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Pearson correlation; 0 if all predictions, or all targets, are the same."""
    return {"pearson_corrcoef": _correlation(scipy.stats.pearsonr, targets, predictions)}


def spearman_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Spearman correlation; 0 if all predictions, or all targets, are the same."""
    return {"spearman_corrcoef": _correlation(scipy.stats.spearmanr, targets, predictions)}


def multirc_f1(targets: Sequence[Grouped], predictions: Sequence[Grouped]) -> dict[str, float]:
    """MultiRC's F1a: F1 over all answers of all questions."""
    return f1([target.value for target in targets], [p.value for p in predictions])


def multirc_exact_match(
    targets: Sequence[Grouped], predictions: Sequence[Grouped]
) -> dict[str, float]:
    """MultiRC's EM: share of questions of which every answer is judged correctly."""
    right: dict[object, bool] = {}
    for target, prediction in zip(targets, predictions, strict=True):
        equal = target.value == prediction.value
        right[target.group] = right.get(target.group, True) and equal
    return {"exact_match": statistics.fmean(right.values())}


def record(targets: Sequence[Grouped], predictions: Sequence[Grouped]) -> dict[str, float]:
    """ReCoRD's EM and F1, counting each query once."""
    rows: dict[object, tuple[Sequence[str], str]] = {}
    for target, prediction in zip(targets, predictions, strict=True):
        rows.setdefault(target.group, (target.value, prediction.value))
    return squad(*zip(*rows.values(), strict=True))


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and token F1 after `normalize`, each against the best of an example's answers.

    An answer that `normalize` leaves nothing of, such as "A" or "+", is compared as it is written,
    in lower case: any two such texts would be equal otherwise, and the F1 of equal ones 0. "" is no
    answer, which a prediction of nothing equals, as in SQuAD 2.
    """
    rows = [
        [_comparable(answer, prediction) for answer in answers]
        for answers, prediction in zip(targets, predictions, strict=True)
    ]
    return {
        "em": statistics.fmean(max(float(a == text) for a, text in row) for row in rows),
        "f1": statistics.fmean(max(_token_f1(a, text) for a, text in row) for row in rows),
    }


def normalize(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def super_glue_score(results: Results) -> float:
    """SuperGLUE's score: the mean over its eight tasks of the mean of each task's metrics.

    Args:
      results: Metrics of each task of `SUPER_GLUE`; other tasks are ignored.

    Raises:
      UserError: If a task is missing.
    """
    return _score("SuperGLUE", SUPER_GLUE, results)


def glue_score(results: Results) -> float:
    """GLUE's score: the mean over its nine tasks of the mean of each task's metrics.

    Args:
      results: Metrics of each task of `GLUE`; "mnli_matched" and "mnli_mismatched" together may
        stand for "mnli". Other tasks are ignored.

    Raises:
      UserError: If a task is missing.
    """
    halves = [results[name] for name in ("mnli_matched", "mnli_mismatched") if name in results]
    if len(halves) == 2:
        means = map(_mean, halves)
        results = {**results, "mnli": dict(zip(("matched", "mismatched"), means, strict=True))}
    return _score("GLUE", GLUE, results)


def _score(benchmark: str, tasks: Sequence[str], results: Results) -> float:
    if missing := [task for task in tasks if task not in results]:
        raise UserError(f"{benchmark} score: missing the tasks {', '.join(missing)}")
    return statistics.fmean(_mean(results[task]) for task in tasks)


def _mean(metrics: Mapping[str, float]) -> float:
    return statistics.fmean(metrics.values())


def _wrong_if_invalid(targets: Sequence[int], predictions: Sequence[int]) -> list[int]:
    pairs = zip(targets, predictions, strict=True)
    return [p if p in (0, 1) else 1 - target for target, p in pairs]


def _correlation(
    function: Callable, targets: Sequence[float], predictions: Sequence[float]
) -> float:
    if len(set(targets)) < 2 or len(set(predictions)) < 2:
        return 0.0
    return float(function(targets, predictions).statistic)


def _comparable(answer: str, prediction: str) -> tuple[str, str]:
    """An answer and a prediction in the form in which they are compared."""
    if answer.strip() and not normalize(answer):
        return " ".join(answer.lower().split()), " ".join(prediction.lower().split())
    return normalize(answer), normalize(prediction)


def _token_f1(answer: str, prediction: str) -> float:
    expected, predicted = answer.split(), prediction.split()
    if not expected:
        return float(not predicted)
    common = (collections.Counter(expected) & collections.Counter(predicted)).total()
    # The harmonic mean of common / expected and common / predicted.
    return 2 * common / (len(expected) + len(predicted)) if common else 0.0
