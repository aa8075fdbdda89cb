"""Texts and settings that are given to a model as something other than what it expects."""

import copy
import enum
import os
import pickle
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import seqio

from prompt_tuning import embedded, serving, sharding
from prompt_tuning.data import tasks as data_tasks
from prompt_tuning.data.batching.settings import check_lengths
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import generate
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods import ModelTuning
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.runs import checks
from prompt_tuning.serving.task_rows import TaskRows
from prompt_tuning.serving.texts import encoded
from prompt_tuning.testing import Numbers, tiny_config, tiny_model
from prompt_tuning.training.loop import Fit
from prompt_tuning.transformer.vocabulary import EOS, SentencePiece, begin_of

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
    "enumeration": lambda: list(enum.Enum("Text", dict(zip("abc", TEXTS, strict=True)), type=str)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_texts_are_taken_by_position(model, kind, call):
    function, names = CALLS[call], pd.Series(["a", "b", "a"], index=[5, 3, 4])
    assert function(model, SEQUENCES[kind](), "a") == function(model, TEXTS, "a")
    assert function(model, SEQUENCES[kind](), names) == function(model, TEXTS, ["a", "b", "a"])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["4", "5 6 7 8"], "texts of more tokens than the input length are cut"),
        (["2 2 4", "5"], "does not know most characters of some texts"),
        (["4", "2"], "does not know most characters of some texts"),
        (["2 4", "5 6 7"], ""),
    ],
)
def test_texts_that_a_model_cannot_read(model, monkeypatch, call, texts, message):
    """2 is the unknown piece."""
    monkeypatch.setattr(model, "input_length", 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CALLS[call](model, texts, "a")
    assert [message in str(warning.message) for warning in caught] == [True] * bool(message)


@pytest.mark.parametrize("name", ["spiece", "bytes"])
def test_a_vocabulary_of_seqio_s_is_taken_as_ours(monkeypatch, name):
    """Of which it is known what begins inputs, and which pieces it has."""
    path = Path(__file__).parents[1] / "fixtures" / "gemma" / "vocabulary" / "tokenizer.model"
    theirs = seqio.ByteVocabulary() if name == "bytes" else data_tasks.vocabulary(path)
    monkeypatch.setattr(serving.model, "check_size", lambda pieces, rows: None)
    tuned = tiny_model()
    ours = serving.Model(tuned.model.config, tuned.params, theirs, tuned.layout).vocabulary
    assert begin_of(ours) == tuple(data_tasks.begin_of(theirs))
    assert ours.fingerprint == data_tasks.fingerprint(theirs)


def test_a_vocabulary_that_ends_texts_itself_is_refused():
    class Ending(Numbers):
        def encode(self, text: str) -> list[int]:
            return [*super().encode(text), EOS]

    tuned = tiny_model()
    with pytest.raises(UserError, match=r"^vocabulary: its encode ends with the end token"):
        serving.Model(tuned.model.config, tuned.params, Ending(), tuned.layout)


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("\ufffd" * 9, False),
        ("\u2581\u2581", False),
        ("a \ufffd\ufffd\ufffd\ufffd", False),
        ("\u6f22\u5b57", False),
        ("na\u00efve cafe\u0301", True),
        ("e\u0301" * 8, True),
        ("\u200bgood\u200b", True),
        ("\ufb01ne \u2460 \u2122", True),
        ("a film, caf\ufffd", True),
        ("", True),
    ],
)
def test_characters_that_a_vocabulary_drops(text, readable):
    vocabulary = SentencePiece(embedded.vocabulary())
    assert encoded(vocabulary, text, 32).is_readable == readable


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed = -1: must be a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed = 4294967296: must be a whole number"),
        ({"seed": True}, "seed = True: must be a whole number"),
        ({"seed": [1, 2]}, "1 texts, but 2 values of seed: give one for each"),
        ({"max_tokens": 2**31}, "max_tokens = 2147483648: must be a whole number from 1 to 65536"),
        ({"max_tokens": 0}, "max_tokens = 0: must be a whole number"),
        ({"max_tokens": "3"}, "max_tokens = '3': must be a whole number"),
        ({"max_tokens": [2.0]}, "max_tokens = 2.0: must be a whole number"),
        ({"stop": 1}, "stop = 1: must be a list of ids of tokens"),
        ({"stop": "ab"}, "stop = 'ab': must be a list of ids of tokens"),
        ({"stop": None}, "stop = None: must be a list of ids of tokens"),
        ({"stop": [3, 64]}, r"stop\[1\] = 64: must be a whole number from 0 to 63"),
        ({"beams": 2.0}, "beams = 2.0: must be a whole number from 1 to 64"),
        ({"beams": "2"}, "beams = '2': must be a whole number"),
        ({"beams": 10**6}, "beams = 1000000: must be a whole number"),
        ({"alpha": float("nan")}, "alpha = nan: must be a finite number"),
        ({"alpha": "x"}, "alpha = 'x': must be a finite number"),
        ({"alpha": 10**400}, "must be a finite number"),
        ({"alpha": 60, "beams": 3}, "alpha = 60: must be a number from 0 to 4"),
        ({"alpha": -0.5, "beams": 3}, "alpha = -0.5: must be a number from 0 to 4"),
        ({"stop": b"\x05"}, r"stop = b'\\x05': must be a list of ids of tokens"),
        ({"sampling": 1}, "sampling = 1: must be a Sampling or None"),
    ],
)
def test_settings_out_of_range(model, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        model.generate(["4"], "a", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: serving.Sampling(temperature="x"), "temperature = 'x': must be a finite number"),
        (lambda: serving.Sampling(top_k=1.5), "top_k = 1.5: must be a whole number from 0"),
        (lambda: serving.Sampling(top_p=None), "top_p = None: must be a finite number"),
        (lambda: small(input_length=0), "input_length = 0: must be a whole number from 1 to 65536"),
        (lambda: small(input_length=2.5), "input_length = 2.5: must be a whole number"),
        (lambda: small(batch_size="8"), "batch_size = '8': must be a positive multiple"),
        (lambda: bank(capacity=-3), "tasks = -3: must be a whole number from 1"),
        (lambda: bank(length=-1), "prompt_length = -1: must be a whole number from 0"),
        (lambda: bank(axis="x"), r"shard_prompts = 'x': not an axis of the mesh \(data, model\)"),
        (lambda: rows(target_length=2**31), "TARGET_LENGTH = 2147483648: must be a whole number"),
        (lambda: rows(input_length=0), "INPUT_LENGTH = 0: must be a whole number"),
        (lambda: initial(-1), "RANDOM_SEED = -1: must be a whole number from 0 to 2147483647"),
        (lambda: initial(2**32), "RANDOM_SEED = 4294967296: must be a whole number"),
        (lambda: Fit(total_steps=1, seed=2**31), "RANDOM_SEED = 2147483648: must be a whole"),
        (lambda: checks.random_seed(1.5), "RANDOM_SEED = 1.5: must be a whole number"),
        (
            lambda: check_lengths("TASK_FEATURE_LENGTHS", {"inputs": 8, "targets": 2**31}),
            r"TASK_FEATURE_LENGTHS\['targets'\] = 2147483648: must be a whole number",
        ),
    ],
)
def test_objects_of_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def small(**settings) -> serving.Model:
    tuned = tiny_model()
    return serving.Model(tuned.model.config, tuned.params, Numbers(), tuned.layout, **settings)


def bank(**settings) -> serving.PromptBank:
    return serving.PromptBank.empty(16, sharding.layout().mesh, **settings)


def rows(**settings) -> TaskRows:
    return TaskRows("rows.jsonl", "prompts", Numbers(), **settings)


def initial(seed: int) -> TunedModel:
    return initialize(tiny_config(), ModelTuning(), layout=sharding.layout(), seed=seed)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_model_is_not_copied(model, copied):
    with pytest.raises(TypeError, match="a Model cannot be pickled or copied: load it in each"):
        copied(model)


@pytest.mark.parametrize("call", [*CALLS, "add", "remove"])
def test_a_model_is_not_used_after_a_fork(model, monkeypatch, call):
    changes = {
        "add": lambda model, *_: model.add_task("c", None),
        "remove": lambda model, *_: model.remove_task("a"),
    }
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(UserError, match=f"of process {parent} and cannot be used after a fork"):
        (CALLS | changes)[call](model, TEXTS, "a")
    assert repr(model)


def test_a_batch_that_the_devices_do_not_divide():
    ids = np.ones((2, 1), np.int32)
    data = EvalSet("mine", "test", ["a", "b"], ["x", "y"], ids, (), ids[:0], 1, (), str)
    with pytest.raises(ValueError, match="batch_size = 30: must be a positive multiple of the 8"):
        generate(tiny_model(layout=sharding.layout()), data, 30)
