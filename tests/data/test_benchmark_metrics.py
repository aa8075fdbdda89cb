"""Post-processing and metrics of GLUE and SuperGLUE, against values worked out differently."""

import numpy as np
import pytest

from prompt_tuning.data.catalogue import glue_metrics as metrics
from prompt_tuning.data.catalogue import postprocess
from prompt_tuning.data.catalogue.postprocess import INVALID, NO_SCORE, Grouped
from prompt_tuning.errors import UserError

LABELS = ("False", "True")
RNG = np.random.default_rng(3)


def confusion(targets, predictions) -> tuple[int, int, int, int]:
    """True and false positives, false and true negatives; a wrong one is false for its target."""
    pairs = list(zip(targets, predictions, strict=True))
    hits = sum(t == p == 1 for t, p in pairs)
    rejections = sum(t == p == 0 for t, p in pairs)
    ones = sum(t == 1 for t, _ in pairs)
    return hits, len(pairs) - ones - rejections, ones - hits, rejections


def grouped(*pairs) -> list[Grouped]:
    return [Grouped(group, value) for group, value in pairs]


@pytest.mark.parametrize(
    ("text", "index"),
    [("False", 0), ("True", 1), (" True\n", 1), ("true", INVALID), ("", INVALID), ("Tru", INVALID)],
)
def test_label_index(text, index):
    assert postprocess.label_index(text, LABELS, example={}, is_target=False) == index


def test_multirc_is_grouped_by_question():
    example = {"idx/paragraph": 3, "idx/question": np.int32(7), "idx/answer": 1}
    actual = postprocess.multirc("True", example=example, is_target=True)
    assert actual == ((3, 7), 1)
    assert postprocess.multirc("maybe", example=example) == ((3, 7), INVALID)


def test_record_compares_with_all_answers():
    example = {"idx/passage": 3, "idx/query": 9, "answers": np.array([b"Rome", "Köln".encode()])}
    actual = postprocess.record("Rome", example=example, is_target=True)
    assert actual == ((3, 9), ["Rome", "Köln"])
    assert postprocess.record("Bonn", example=example) == ((3, 9), "Bonn")


@pytest.mark.parametrize(
    ("text", "number"),
    [("3.4", 3.4), (" 5.0", 5.0), ("none", NO_SCORE), ("", NO_SCORE), ("nan", NO_SCORE)],
)
def test_score(text, number):
    assert postprocess.score(text, example={}) == number


@pytest.mark.parametrize(
    ("text", "noun", "same"),
    [
        ("the lawyer", "The lawyer", 1),
        ("bunny", "the fuzzy bunny", 1),
        ("The old fuzzy bunny", "bunny", 1),
        ("his sister", "my sister", 1),
        ("Bob", "Bob's hat", 0),
        ("fuzzy cat", "fuzzy bunny", 0),
        ("Jane", "Joan", 0),
        ("the", "the man", INVALID),
        ("", "the man", INVALID),
    ],
)
def test_wsc(text, noun, same):
    example = {"targets_pretokenized": noun.encode(), "label": np.int32(1)}
    assert postprocess.wsc(text, example=example) == same
    assert postprocess.wsc(noun, example=example, is_target=True) == 1
    assert postprocess.wsc(noun, example=example | {"label": 0}, is_target=True) == 0


@pytest.mark.parametrize(
    ("function", "text", "example"),
    [
        (lambda *a, **k: postprocess.label_index(*a, labels=LABELS, **k), "<unk>", {}),
        (postprocess.multirc, "<unk>", {"idx/paragraph": 0, "idx/question": 0}),
        (postprocess.record, "<unk>", {"idx/passage": 0, "idx/query": 0, "answers": np.array([])}),
        (postprocess.score, "-1.0", {}),
        (postprocess.wsc, "the man", {"targets_pretokenized": b"the man", "label": -1}),
    ],
)
def test_hidden_targets_cannot_be_measured(function, text, example):
    with pytest.raises(UserError, match="not public"):
        function(text, example=example, is_target=True)


def test_accuracy():
    assert metrics.accuracy([0, 1, 1, 0], [0, 1, INVALID, 1]) == {"accuracy": 0.5}


@pytest.mark.parametrize("seed", range(5))
def test_f1_and_matthews_from_the_confusion_matrix(seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, 50).tolist()
    predictions = rng.integers(-1, 2, 50).tolist()
    a, b, c, d = confusion(targets, predictions)
    assert metrics.f1(targets, predictions)["f1"] == pytest.approx(2 * a / (2 * a + b + c))
    expected = (a * d - b * c) / np.sqrt(float((a + b) * (a + c) * (d + b) * (d + c)))
    actual = metrics.matthews_corrcoef(targets, predictions)["matthews_corrcoef"]
    assert actual == pytest.approx(expected)


def test_one_and_the_same_prediction():
    assert metrics.f1([0, 1], [0, 0]) == {"f1": 0.0}
    assert metrics.matthews_corrcoef([0, 1, 1], [1, 1, 1]) == {"matthews_corrcoef": 0.0}
    assert metrics.pearson_corrcoef([1.0, 2.0], [3.0, 3.0]) == {"pearson_corrcoef": 0.0}
    assert metrics.spearman_corrcoef([1.0, 2.0], [3.0, 3.0]) == {"spearman_corrcoef": 0.0}


def test_mean_f1_of_three_classes_by_hand():
    # Of 0: precision 1/2, recall 1/3. Of 1: 1/1, 1/2. Of 2: nothing right. One is invalid.
    targets, predictions = [0, 0, 0, 1, 1, 2], [0, 1, INVALID, 1, 0, 0]
    first = 2 * (1 / 3) * (1 / 3) / (1 / 3 + 1 / 3)
    second = 2 * (1 / 2) * (1 / 2) / (1 / 2 + 1 / 2)
    actual = metrics.mean_3class_f1(targets, predictions)
    assert actual == {"mean_3class_f1": pytest.approx((first + second + 0) / 3)}


def test_correlations():
    targets = RNG.normal(size=30)
    predictions = targets + RNG.normal(size=30)
    actual = metrics.pearson_corrcoef(targets.tolist(), predictions.tolist())
    assert actual["pearson_corrcoef"] == pytest.approx(np.corrcoef(targets, predictions)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (targets, predictions)]
    actual = metrics.spearman_corrcoef(targets.tolist(), predictions.tolist())
    assert actual["spearman_corrcoef"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_multirc():
    targets = grouped(("a", 1), ("a", 0), ("b", 1), ("c", 0), ("c", 1))
    predictions = grouped(("a", 1), ("a", 0), ("b", 0), ("c", 0), ("c", INVALID))
    assert metrics.multirc_exact_match(targets, predictions) == {
        "exact_match": pytest.approx(1 / 3)
    }
    # One of three true answers is found, and nothing else: precision 1, recall 1/3.
    assert metrics.multirc_f1(targets, predictions) == {"f1": pytest.approx(0.5)}


def test_squad_normalisation():
    assert metrics.normalize(" The  U.S. (an idea), a Thing's\tend!") == "us idea things end"
    assert metrics.normalize("another theme") == "another theme"


def test_squad_takes_the_best_answer():
    actual = metrics.squad(
        [["the Eiffel Tower", "Tower"], ["Rome"], ["in 1999 or 2000"]],
        ["eiffel tower.", "Bonn", "1999 2000 2000 2001"],
    )
    # Of the last, 2 words of 4 are among the 4 of the answer, each once.
    assert actual == {"em": pytest.approx(1 / 3), "f1": pytest.approx((1 + 0 + 2 * 2 / 8) / 3)}


def test_record_counts_a_query_once():
    targets = grouped((1, ["Rome", "Ulm"]), (1, ["Rome", "Ulm"]), (2, ["New York"]))
    predictions = grouped((1, "Ulm"), (1, "Ulm"), (2, "York"))
    assert metrics.record(targets, predictions) == {
        "em": 0.5,
        "f1": pytest.approx((1 + 2 / 3) / 2),
    }


def test_super_glue_score_of_a_published_result():
    # T5 11B on super.gluebenchmark.com, where it has 89.3.
    results = {
        "boolq": {"accuracy": 91.2},
        "cb": {"mean_3class_f1": 93.9, "accuracy": 96.8},
        "copa": {"accuracy": 94.8},
        "multirc": {"f1": 88.1, "exact_match": 63.3},
        "record": {"f1": 94.1, "em": 93.4},
        "rte": {"accuracy": 92.5},
        "wic": {"accuracy": 76.9},
        "wsc": {"accuracy": 93.8},
        "axb": {"matthews_corrcoef": 65.6},
    }
    assert metrics.super_glue_score(results) == pytest.approx(89.25)
    with pytest.raises(UserError, match="SuperGLUE score: missing the tasks cb, rte"):
        metrics.super_glue_score({k: v for k, v in results.items() if k not in ("cb", "rte")})


def test_glue_score_of_a_published_result():
    # BERT large on gluebenchmark.com, where it has 80.5.
    results = {
        "cola": {"matthews_corrcoef": 60.5},
        "sst2": {"accuracy": 94.9},
        "mrpc": {"f1": 89.3, "accuracy": 85.4},
        "stsb": {"pearson_corrcoef": 87.6, "spearman_corrcoef": 86.5},
        "qqp": {"f1": 72.1, "accuracy": 89.3},
        "mnli_matched": {"accuracy": 86.7},
        "mnli_mismatched": {"accuracy": 85.9},
        "qnli": {"accuracy": 92.7},
        "rte": {"accuracy": 70.1},
        "wnli": {"accuracy": 65.1},
    }
    assert round(metrics.glue_score(results), 1) == 80.5
    with pytest.raises(UserError, match="GLUE score: missing the tasks mnli"):
        metrics.glue_score({k: v for k, v in results.items() if k != "mnli_matched"})
