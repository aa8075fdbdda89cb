"""Metrics as users' functions return them."""

import contextlib
import dataclasses
import json
from decimal import Decimal

import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from prompt_tuning.data.metrics import accuracy
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import predictions, table
from prompt_tuning.evaluation.scores import majority, measure, score
from prompt_tuning.evaluation.sets import EvalSet, Predictions


def of_metrics(*metric_fns) -> EvalSet:
    ids = np.ones((2, 1), np.int32)
    return EvalSet("mine", "test", ["a", "b"], ["x", "y"], ids, (), ids[:0], 1, metric_fns, str)


def returns(value):
    def metric(targets, predictions):
        return value

    return metric


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        np.float32(0.5),
        np.array(0.5),
        jnp.asarray(0.5, "bfloat16"),
        seqio.metrics.Scalar(np.float64(0.5)),
        Decimal("0.5"),
        True,
        np.int64(3),
        np.bool_(0),
    ],
)
def test_a_metric_is_a_float(value):
    measured = measure(of_metrics(returns({"m": value})), Predictions(["x", "y"]))
    assert type(measured["m"]) is float
    assert measured["m"] == float(getattr(value, "value", value))
    assert majority(of_metrics(returns({"m": value})), ["generate"]) == {
        "generate/m": measured["m"]
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"m": seqio.metrics.Text("an answer")}], "'m' of metric is Text.*must be one number"),
        ([{"m": "0.5"}], r"'m' of metric is '0.5' \(type str\); must be one number"),
        ([{"m": np.zeros(2)}], "'m' of metric is array.*must be one number"),
        ([{"m": None}], r"'m' of metric is None \(type NoneType\)"),
        ([{"m": 1j}], "'m' of metric is 1j"),
        ([{}], "mine: its metrics returned no number"),
        ([0.5], r"the metric metric returned 0.5 \(type float\); must return a dict"),
        ([{"m": 1}, {"m": 2}], "two metrics are called 'm'"),
    ],
)
def test_a_metric_that_is_no_number(values, message):
    with pytest.raises(UserError, match=message) as caught:
        measure(of_metrics(*map(returns, values)), Predictions(["x", "y"]))
    assert "\n" not in str(caught.value)


def test_a_metric_that_sorts_its_arguments_changes_no_other_metric():
    def overlap(targets, predictions):
        targets.sort()
        predictions.sort()
        return {"overlap": len(set(targets) & set(predictions))}

    data = dataclasses.replace(of_metrics(overlap, accuracy), targets=["y", "x"])
    predictions = Predictions(["x", "y"])
    assert measure(data, predictions) == {"overlap": 2, "accuracy": 0}
    assert (data.targets, predictions.texts) == (["y", "x"], ["x", "y"])


@pytest.mark.parametrize("texts", [[], ["x"], ["x", "y", "z"]])
def test_one_prediction_for_each_target(texts):
    message = f"mine: {len(texts)} predictions for 2 targets; must be one for each"
    with pytest.raises(UserError, match=message):
        measure(of_metrics(accuracy), Predictions(texts))


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (Predictions(["x", 1]), r"mine: prediction 2 is 1 \(type int\); must be a text"),
        (Predictions(np.array([1, 0])), r"mine: prediction 1 is .*\(type int64\); must be a text"),
        (Predictions([None, "x"]), "mine: prediction 1 is None"),
        (Predictions([b"x", "y"]), "mine: prediction 1 is b'x'"),
        (["x", "y"], r"mine: predictions = \['x', 'y'\] .*; must be Predictions\(texts\)"),
    ],
)
def test_predictions_are_texts(predictions, message):
    with pytest.raises(UserError, match=message):
        measure(of_metrics(accuracy), predictions)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("rank", r"methods = 'rank': must be a list, such as \['rank'\]"),
        (8, "methods = 8: must be a list"),
        ([8], "methods has 8; available: rank, generate, auto"),
        (["accuracy"], "methods has 'accuracy'; available"),
        ([["rank"]], r"methods has \['rank'\]; available"),
    ],
)
def test_methods_that_are_none(methods, message):
    data = of_metrics(accuracy)
    for measured in (lambda: score(None, data, methods, 8), lambda: majority(data, methods)):
        with pytest.raises(UserError, match=message):
            measured()


CONSTANTS = [
    (["no", "yes", "yes"], {"rank": ["yes"] * 3}, 2 / 3, {"rank": "yes"}),
    (
        ["no", "yes"],
        {"rank": ["no", "no"], "generate": ["", ""]},
        1 / 2,
        {"rank": "no", "generate": ""},
    ),
    (["no", "yes"], {"rank": ["no", "yes"], "generate": ["no", "no"]}, 1 / 2, {"generate": "no"}),
    (["no", "no"], {"rank": ["no", "yes"]}, 1.0, {}),
    (["no"], {"rank": ["no"]}, 1.0, {}),
]


@pytest.mark.parametrize("labels", [("no", "yes"), ()])
@pytest.mark.parametrize(("targets", "answers", "share", "constant"), CONSTANTS)
def test_constant_answers_are_marked(tmp_path, capsys, labels, targets, answers, share, constant):
    data = dataclasses.replace(of_metrics(accuracy), inputs=targets, targets=targets, labels=labels)
    by_method = {name: Predictions(texts) for name, texts in answers.items()}
    metrics = predictions.write(tmp_path, data, by_method)
    content = json.loads((tmp_path / "mine-test-metrics.json").read_text())
    assert content.items() >= metrics.items()
    assert content.get("majority_class") == (pytest.approx(share) if labels else None)
    assert content.get("constant_answers", {}) == constant
    predictions.show(data, "this model", metrics, by_method)
    shown = capsys.readouterr().out
    assert f"{share:.4f}" in shown
    for name, text in constant.items():
        assert f"warning: mine: every answer by {name} is {text!r}; the metrics" in shown
    assert shown.count("warning") == len(constant)


def test_names_of_any_length_stay_above_their_column():
    text = table.table({"a": {"m": 1.0, "a_metric_of_a_long_name": 0.25}, "b": {"m": 2.0}})
    head, _, *rows = text.splitlines()
    assert len(head) == len(rows[0]) == len(rows[1])
    assert rows[0].endswith("0.2500") and head.endswith("a_metric_of_a_long_name")


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ([("f1", "em"), ("em", "f1")], "'em' now and was 'f1' before"),
        ([("f1",), ("f1",), ("accuracy",)], "'accuracy' now and was 'f1' before"),
        ([("f1", "em"), ("f1",), ("f1", "recall")], ""),
    ],
)
def test_steps_are_compared_by_one_metric(names, fault):
    values = iter([dict.fromkeys(each, 0.5) for each in names])
    data = of_metrics(lambda targets, predictions: next(values))
    with pytest.raises(UserError, match=fault) if fault else contextlib.nullcontext():
        for _ in names:
            measure(data, Predictions(["x", "y"]))
