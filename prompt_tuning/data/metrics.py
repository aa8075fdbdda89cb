"""The metrics of the package's own tasks and of files, by the names that METRICS takes.

Their arguments are texts. `accuracy` is light; the others import SciPy and scikit-learn when they
are first called.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prompt_tuning.data import label_words
from prompt_tuning.data.unicode_form import composed
from prompt_tuning.errors import UserError

Metric = Callable[..., Mapping[str, float]]  # a `MetricFn`, whose module imports JAX
MOST_EXACT = 2**53  # whole number that a float holds
NO_CLASS = -1  # number of an answer that is no label word
_OF_A_CLASS = "f1:"


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target, up to surrounding white space: 0 to 1.

    Raises:
      ValueError: If there are no targets, or the numbers of targets and predictions differ.
    """
    if not targets:
        raise ValueError("accuracy needs at least one target")
    pairs = zip(targets, predictions, strict=True)
    equal = sum(target.strip() == prediction.strip() for target, prediction in pairs)
    return {"accuracy": equal / len(targets)}


def f1_macro(
    targets: Sequence[str], predictions: Sequence[str], *, classes: Mapping[str, int]
) -> dict[str, float]:
    """Unweighted mean of the F1 of each class that targets or predictions have.

    Args:
      targets, predictions: N texts each.
      classes: Number of each label word.
    """
    import sklearn.metrics

    expected, predicted = _numbers(targets, classes), _numbers(predictions, classes)
    present = sorted({*expected, *predicted} - {NO_CLASS})
    score = sklearn.metrics.f1_score(
        expected, predicted, labels=present, average="macro", zero_division=0
    )
    return {"f1_macro": float(score)}


def f1_of(
    targets: Sequence[str],
    predictions: Sequence[str],
    *,
    word: str,
    classes: Mapping[str, int],
) -> dict[str, float]:
    """F1 of the class of one label word; 0 if neither targets nor predictions have it."""
    import sklearn.metrics

    expected, predicted = _numbers(targets, classes), _numbers(predictions, classes)
    number = classes[word]
    score = sklearn.metrics.f1_score(
        [n == number for n in expected], [n == number for n in predicted], zero_division=0
    )
    return {f"{_OF_A_CLASS}{word}": float(score)}


def matthews_corrcoef(
    targets: Sequence[str], predictions: Sequence[str], *, classes: Mapping[str, int]
) -> dict[str, float]:
    """Matthews correlation of any number of classes; 0 if all predictions are the same."""
    import sklearn.metrics

    expected, predicted = _numbers(targets, classes), _numbers(predictions, classes)
    return {"matthews_corrcoef": float(sklearn.metrics.matthews_corrcoef(expected, predicted))}


def pearson_corrcoef(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Pearson correlation of numbers; 0 if all predictions, or all targets, are the same."""
    from prompt_tuning.data.catalogue import glue_metrics

    return glue_metrics.pearson_corrcoef(*_values(targets, predictions))


def spearman_corrcoef(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Spearman correlation of numbers; 0 if all predictions, or all targets, are the same."""
    from prompt_tuning.data.catalogue import glue_metrics

    return glue_metrics.spearman_corrcoef(*_values(targets, predictions))


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target after SQuAD's normalisation."""
    from prompt_tuning.data.catalogue import glue_metrics

    return {"exact_match": glue_metrics.squad([[text] for text in targets], predictions)["em"]}


def token_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of the words that prediction and target share, after SQuAD's normalisation."""
    from prompt_tuning.data.catalogue import glue_metrics

    return {"token_f1": glue_metrics.squad([[text] for text in targets], predictions)["f1"]}


_OF_TEXTS: Mapping[str, Metric] = {
    metric.__name__: metric for metric in (accuracy, exact_match, token_f1)
}
_OF_NUMBERS: Mapping[str, Metric] = {
    metric.__name__: metric for metric in (pearson_corrcoef, spearman_corrcoef)
}
_OF_CLASSES: Mapping[str, Metric] = {
    metric.__name__: metric for metric in (f1_macro, matthews_corrcoef)
}
DEFAULT = ("accuracy",)


def checked(names: Any, labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of METRICS as a tuple.

    Args:
      names: A sequence of strings, of any type.
      labels: Label words of the task; empty for text to text.

    Raises:
      UserError: Unless `names` are distinct names of metrics that fit the label words.
    """
    known = (*_OF_TEXTS, *_OF_CLASSES, *_OF_NUMBERS)
    shown = ", ".join((*known, f"{_OF_A_CLASS}WORD"))
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise UserError(f"METRICS = {names!r}: must be a list of {shown}")
    for i, name in enumerate(names):
        where = f"METRICS has {name!r}"
        of_a_class = isinstance(name, str) and name.startswith(_OF_A_CLASS)
        if name not in known and not of_a_class:
            raise UserError(f"{where}, which is none of {shown}")
        if name in names[:i]:
            raise UserError(f"{where} twice")
        if (of_a_class or name in _OF_CLASSES) and not labels:
            raise UserError(
                f"{where}, which needs CLASS_LABELS; tasks of FILE_TASKS have both in "
                "files.of_folder, as `labels` and `metrics`"
            )
        if of_a_class and composed(name.removeprefix(_OF_A_CLASS)) not in map(composed, labels):
            words = ", ".join(map(repr, labels))
            raise UserError(f"{where}, whose word is not one of CLASS_LABELS ({words})")
        other = next((word for word in labels if label_words.number(word) is None), None)
        if name in _OF_NUMBERS and other is not None:
            raise UserError(f"{where}, which needs numbers, but CLASS_LABELS has {other!r}")
    return tuple(names)


def of_numbers(names: Sequence[str]) -> str:
    """The first of some metrics that needs numbers as targets; "" if none does."""
    return next((name for name in names if name in _OF_NUMBERS), "")


def by_name(
    names: Sequence[str], labels: Sequence[str], written: Callable[[str], str]
) -> list[Metric]:
    """The metrics of METRICS.

    Args:
      names: From `checked`.
      labels: Label words of the task.
      written: Function from a text to the text that the vocabulary makes of it.
    """
    classes = {spelling: i for i, word in enumerate(labels) for spelling in (word, written(word))}
    metrics: list[Metric] = []
    for name in names:
        if name in _OF_CLASSES:
            metrics.append(functools.partial(_OF_CLASSES[name], classes=classes))
        elif name.startswith(_OF_A_CLASS):
            asked = composed(name.removeprefix(_OF_A_CLASS))
            word = next(word for word in labels if composed(word) == asked)
            metrics.append(functools.partial(f1_of, word=word, classes=classes))
        else:
            metrics.append({**_OF_TEXTS, **_OF_NUMBERS}[name])
    return metrics


def _numbers(texts: Sequence[str], classes: Mapping[str, int]) -> list[int]:
    """The number of each text's class, `NO_CLASS` if it has none."""
    by_text = {word.strip(): number for word, number in classes.items()}
    return [by_text.get(text.strip(), NO_CLASS) for text in texts]


def _values(targets: Sequence[str], predictions: Sequence[str]) -> tuple[list[float], list[float]]:
    """The numbers of texts; an answer that is none is one below the smallest target."""
    expected = []
    for text in targets:
        if (value := _finite(text)) is None:
            raise UserError(
                f"METRICS needs numbers, but the vocabulary writes a target as {text!r}"
            )
        if abs(value) > MOST_EXACT:
            raise UserError(
                f"METRICS: a target is {text!r}, and numbers above 2^53 are rounded; subtract or "
                "divide by a number"
            )
        expected.append(value)
    predicted = [_finite(text) for text in predictions]
    return expected, [min(expected) - 1 if value is None else value for value in predicted]


def _finite(text: str) -> float | None:
    value = label_words.number(text)
    return value if value is not None and math.isfinite(value) else None
