"""Texts that are given to a model as something other than a plain list."""

import datasets
import numpy as np
import pandas as pd
import pytest

from prompt_tuning import serving, sharding
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import generate
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.testing import Numbers, tiny_model

TEXTS = ["4 5 6", "7 8", "9 10 11"]
CALLS = {
    "call": lambda model, texts, task: model(texts, task=task),
    "classify": lambda model, texts, task: model.classify(texts, task=task),
    "generate": lambda model, texts, task: model.generate(texts, task=task, max_tokens=2),
    "embed": lambda model, texts, task: model.embed(texts, task=task).tolist(),
}


@pytest.fixture(scope="module")
def model() -> serving.Model:
    tuned = tiny_model()
    model = serving.Model(tuned.model.config, tuned.params, Numbers(), tuned.layout, batch_size=8)
    model.add_task("a", None, labels=["12", "13"])
    model.add_task("b", None, labels=["14", "15"])
    return model


SEQUENCES = {
    "Series": lambda: pd.Series(TEXTS, index=[2, 1, 0]),
    "filtered frame": lambda: pd.DataFrame({"t": ["1", *TEXTS]})[lambda x: x.t != "1"].t,
    "strings of pandas": lambda: pd.Series(TEXTS, dtype="string"),
    "array": lambda: np.array(TEXTS),
    "objects": lambda: np.array(TEXTS, object),
    "tuple": lambda: tuple(TEXTS),
    "Dataset": lambda: datasets.Dataset.from_dict({"t": TEXTS})["t"],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_texts_are_taken_by_position(model, kind, call):
    function, names = CALLS[call], pd.Series(["a", "b", "a"], index=[5, 3, 4])
    assert function(model, SEQUENCES[kind](), "a") == function(model, TEXTS, "a")
    assert function(model, SEQUENCES[kind](), names) == function(model, TEXTS, ["a", "b", "a"])


def test_settings_of_each_text_are_taken_by_position(model):
    settings = {"max_tokens": [1, 2, 3], "seed": [7, 8, 9]}
    indexed = {name: pd.Series(values, index=[2, 1, 0]) for name, values in settings.items()}
    assert model.generate(TEXTS, "a", **indexed) == model.generate(TEXTS, "a", **settings)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("4 5", "texts is one string"),
        (b"4 5", "texts is of type bytes"),
        (None, "texts is of type NoneType"),
        (5, "texts is of type int"),
        ({"4": "5"}, "texts is of type dict"),
        ({"4", "5"}, "texts is of type set"),
        (pd.DataFrame({"t": TEXTS}), "texts is of type DataFrame"),
        (np.array([TEXTS]), "texts is of type ndarray"),
        (np.array("4"), "texts is of type ndarray"),
        ([["4"], ["5"]], r"texts\[0\] is \['4'\], of type list"),
        (["4", None], r"texts\[1\] is None, of type NoneType"),
        (pd.Series(["4", np.nan]), r"texts\[1\] is nan, of type float"),
        (["4", "\ud800"], r"texts\[1\] contains half a surrogate pair"),
    ],
)
def test_everything_else_is_one_line(model, texts, message, call):
    with pytest.raises(UserError, match=message) as caught:
        CALLS[call](model, texts, "a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "task is of type NoneType"),
        ([["a"]], r"task\[0\] is \['a'\]"),
        ([3], r"task\[0\] is 3"),
    ],
)
def test_names_of_tasks_that_are_no_strings(model, task, message):
    with pytest.raises(UserError, match=message):
        model(["4"], task=task)


@pytest.mark.parametrize("beams", [2.0, "2", 0])
def test_beams_that_are_no_number(model, beams):
    with pytest.raises(UserError, match=f"beams = {beams!r}: must be an integer of at least 1"):
        model.generate(["4"], "a", beams=beams)


def test_a_batch_that_the_devices_do_not_divide():
    ids = np.ones((2, 1), np.int32)
    data = EvalSet("mine", "test", ["a", "b"], ["x", "y"], ids, (), ids[:0], 1, (), str)
    with pytest.raises(ValueError, match="batch_size = 30: must be a positive multiple of the 8"):
        generate(tiny_model(layout=sharding.layout()), data, 30)
