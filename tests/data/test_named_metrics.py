"""METRICS of one's own files: their values, and the lines for those that do not fit."""

import json
import math

import pytest

from prompt_tuning import embedded
from prompt_tuning.data import metrics, tasks
from prompt_tuning.data.catalogue import glue_metrics
from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.source import task_data
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import Predictions
from prompt_tuning.testing import clean_registries

VOCABULARY = tasks.vocabulary(embedded.vocabulary())


def values(names, targets, predictions, labels=()):
    metric_fns = metrics.by_name(metrics.checked(names, labels), labels, str.lower)
    actual = {}
    for metric in metric_fns:
        actual |= metric(targets, predictions)
    return actual


WORDS = ("Ham", "spam", "other")
TARGETS = ["ham"] * 6 + ["spam"] * 2
ANSWERS = ["ham"] * 5 + ["spam", "spam", "nonsense"]


def test_of_classes():
    """ham: 5 of 6 found, none wrong; spam: 1 of 2 found, 1 wrong; "other" does not occur."""
    names = ["f1_macro", "f1:spam", "f1:other", "accuracy", "matthews_corrcoef"]
    actual = values(names, TARGETS, ANSWERS, WORDS)
    ham, spam = 2 * 5 / (6 + 5), 2 * 1 / (2 + 2)
    # R_K (Gorodkin, 2004) with the answer that is no word as a class of its own.
    right, count, wanted, answered = 6, 8, (6, 2, 0), (5, 2, 1)
    covariance = right * count - sum(a * b for a, b in zip(wanted, answered, strict=True))
    spread = [count**2 - sum(n * n for n in each) for each in (wanted, answered)]
    assert actual == pytest.approx(
        {
            "f1_macro": (ham + spam) / 2,
            "f1:spam": spam,
            "f1:other": 0.0,
            "accuracy": 6 / 8,
            "matthews_corrcoef": covariance / math.sqrt(spread[0] * spread[1]),
        }
    )
    assert list(actual) == names


def test_of_numbers():
    """An answer that is no number is one below the smallest target."""
    names = ["pearson_corrcoef", "spearman_corrcoef"]
    assert values(names, ["1", "2", "4.0"], ["2", " 4", "8"]) == pytest.approx(
        dict.fromkeys(names, 1)
    )
    assert values(names, ["1", "2", "3"], ["0.1", "?", "5"]) == pytest.approx(
        values(names, ["1", "2", "3"], ["0.1", "0", "5"])
    )
    assert values(names, ["1", "2", "3"], ["a", "b", "nan"]) == dict.fromkeys(names, 0.0)


@pytest.mark.parametrize("text", [str(2**53 + 2), str(-(10**30)), "1e17"])
def test_numbers_that_would_be_rounded(text):
    with pytest.raises(UserError, match=r"numbers above 2\^53 are rounded"):
        values(["pearson_corrcoef"], ["1", text], ["1", "2"])
    assert values(["pearson_corrcoef"], ["1", str(2**53)], ["1", text])


def test_of_texts():
    actual = values(
        ["exact_match", "token_f1"], ["The red house", "a cat"], ["red house!", "black cat"]
    )
    assert actual == pytest.approx({"exact_match": 0.5, "token_f1": (1 + 2 / 3) / 2})


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ("accuracy", (), "METRICS = 'accuracy': must be a list of accuracy, exact_match"),
        ((), (), r"METRICS = \(\): must be a list of"),
        (None, (), "METRICS = None: must be a list of"),
        (["f1"], WORDS, "METRICS has 'f1', which is none of accuracy, .*f1:WORD"),
        ([3], WORDS, "METRICS has 3, which is none of"),
        (["f1:WORD"], WORDS, "METRICS has 'f1:WORD', whose word is not one of CLASS_LABELS"),
        (["f1:ham"], WORDS, r"METRICS has 'f1:ham', whose word is not one .* \('Ham', 'spam', 'o"),
        (["accuracy", "accuracy"], WORDS, "METRICS has 'accuracy' twice"),
        (["f1_macro"], (), "METRICS has 'f1_macro', which needs CLASS_LABELS; tasks of FILE_TASKS"),
        (["f1:spam"], (), "METRICS has 'f1:spam', which needs CLASS_LABELS"),
        (["pearson_corrcoef"], WORDS, "which needs numbers, but CLASS_LABELS has 'Ham'"),
    ],
)
def test_names_that_do_not_fit(names, labels, message):
    with pytest.raises(UserError, match=message):
        TextFiles(labels=labels, metrics=names)


def data(folder, rows, **fields):
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with clean_registries():
        return task_data(
            task=None,
            files=TextFiles(test=str(path), **fields),
            vocabulary=VOCABULARY,
            lengths={"inputs": 8, "targets": 8},
            batch_size=1,
        ).eval_set("test")


def test_numbers_of_a_file(tmp_path):
    """JSON numbers are targets where a metric needs numbers."""
    rows = [{"text": "a", "label": label} for label in (1, 2.5, "4", -3)]
    eval_set = data(tmp_path, rows, metrics=["spearman_corrcoef", "pearson_corrcoef"])
    assert eval_set.targets == ["1", "2.5", "4", "-3"]
    assert measure(eval_set, Predictions(["1", "2.5", "4", "-3"])) == pytest.approx(
        {"spearman_corrcoef": 1, "pearson_corrcoef": 1}
    )


@pytest.mark.parametrize("label", ["good", True, None, "", [1], float("nan")])
def test_targets_that_are_no_numbers(tmp_path, label):
    with pytest.raises(
        UserError, match=r"line 1: 'label' is .*, not a number, which the metric pea"
    ):
        data(tmp_path, [{"text": "a", "label": label}], metrics=["pearson_corrcoef"])


def test_classes_that_the_vocabulary_writes_differently(tmp_path):
    rows = [{"text": "a", "label": "CO₂"}, {"text": "b", "label": "O₂"}]
    names = ["f1_macro", "f1:CO₂", "matthews_corrcoef", "exact_match"]
    eval_set = data(tmp_path, rows, labels=["CO₂", "O₂"], metrics=names)
    for answers in (["CO₂", "O₂"], ["CO2", "O2"]):
        assert measure(eval_set, Predictions(answers)) == dict.fromkeys(names, 1.0)


def test_a_registered_task_has_its_own_metrics():
    with pytest.raises(UserError, match=r"METRICS = \('exact_match',\): is for files of your own"):
        task_data(
            task="demo_reviews",
            files=TextFiles(metrics=["exact_match"]),
            vocabulary=VOCABULARY,
            lengths={"inputs": 8, "targets": 8},
            batch_size=1,
        )


@pytest.mark.parametrize(
    ("target", "prediction", "match", "f1"),
    [
        # Normalisation leaves nothing of these, so they are compared as written.
        ("A", "A", 1, 1),
        ("The", " the ", 1, 1),
        ("+", "+", 1, 1),
        ("a the", "a  the", 1, 1),
        ("...", "...", 1, 1),
        ("+", "-", 0, 0),
        ("A", "The", 0, 0),
        ("+", "", 0, 0),
        ("a the", "the", 0, 2 / 3),
        ("A", "a dog", 0, 2 / 3),
        # SQuAD 2's no answer: nothing, or what normalisation leaves nothing of.
        ("", "", 1, 1),
        ("", "the", 1, 1),
        ("", "dog", 0, 0),
        # As ever.
        ("The dog", "a dog!", 1, 1),
        ("dog", "the", 0, 0),
        ("big dog", "dog", 0, 2 / 3),
    ],
)
def test_texts_of_articles_and_punctuation(target, prediction, match, f1):
    actual = values(["exact_match", "token_f1"], [target], [prediction])
    assert actual == pytest.approx({"exact_match": match, "token_f1": f1})
    several = glue_metrics.squad([["other", target]], [prediction])
    assert several == pytest.approx({"em": match, "f1": f1})
