"""A run says how many inputs and targets its lengths cut."""

import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.batching import tokens
from prompt_tuning.data.catalogue import all_tasks
from prompt_tuning.data.files import Row
from prompt_tuning.data.variants import few_shot
from prompt_tuning.data.variants.few_shot import FewShot

# "a" is one token, so that row i has i + 1 input tokens with the end token.
ROWS = [Row(" ".join("a" * i), "yes") for i in range(1, 11)]
NAME = "test_cut_rows"


@pytest.fixture(autouse=True)
def registered(vocabulary):
    assert [len(vocabulary.encode(row.inputs)) for row in ROWS] == list(range(1, 11))
    tasks.register(NAME, {"train": lambda: ROWS, "validation": lambda: ROWS}, vocabulary)


def data(inputs: int, task: str = NAME, **options) -> TaskData:
    return TaskData(task, {"inputs": inputs, "targets": 4}, 2, **options)


@pytest.mark.parametrize(
    ("length", "share"), [(11, "0 of 10 inputs (0 %)"), (6, "5 of 10 inputs (50 %)")]
)
def test_shares(length, share):
    """An input that just fits is not cut."""
    [train, _] = data(length).train_notes()
    assert f"TASK_FEATURE_LENGTHS cuts {share} to {length} tokens" in train
    assert "and 0 of 10 targets (0 %) to 4 tokens" in train
    assert train.startswith("warning: ") == (length == 6)
    assert train.endswith("; raise the length to keep whole texts") == (length == 6)
    [validation] = data(length).eval_set("validation").notes
    assert f"{NAME}, validation split: TASK_FEATURE_LENGTHS cuts {share}" in validation


@pytest.mark.parametrize(
    ("validation", "share"),
    [(ROWS, "100"), (ROWS[:3], "100"), ([*ROWS[:1], *[Row("b", "yes")] * 9], "10"), ([], "")],
)
def test_rows_that_are_in_two_splits(vocabulary, validation, share):
    rest = [Row("c", "yes")] * (0 if share else 10)
    splits = {"train": lambda: ROWS, "validation": lambda: [*validation, *rest]}
    tasks.register(NAME, splits, vocabulary)
    [_, *warned] = data(11).train_notes()
    assert len(warned) == bool(share)
    for line in warned:
        assert line.startswith(f"warning: {NAME}, validation split: {share} % of the inputs are in")


@pytest.mark.parametrize(
    ("validation", "test", "told"),
    [
        ("vvv", "vvv", ["test 100 % validation chose the best step"]),
        ("vvv", "vwx", ["test 33.3 % validation chose the best step"]),
        ("vvv", "abc", ["test 33.3 % train was trained on"]),
        ("avv", "aww", ["test 33.3 % train", "validation 33.3 % train", "test 33.3 % validation"]),
        ("vvv", "www", []),
    ],
)
def test_a_test_set_that_chose_the_step(validation, test, told, vocabulary):
    """Such as one file as VALIDATION_FILE and TEST_FILE."""
    splits = {
        split: lambda texts=texts: [Row(text, "yes") for text in texts]
        for split, texts in {"train": "a", "validation": validation, "test": test}.items()
    }
    tasks.register(NAME, splits, vocabulary)
    [_, *warned] = data(11).train_notes()
    assert len(warned) == len(told)
    for line, parts in zip(warned, told, strict=True):
        split, share, sign, other, *why = parts.split(" ")
        assert line.startswith(f"warning: {NAME}, {split} split: {share} {sign} of the inputs are")
        assert f"in the {other} split too" in line and line.endswith(" ".join(why))


@pytest.mark.parametrize(
    "text", ["\u8d1f\u9762 film", "\U0001f600", "\u041f\u0440\u0438\u0432\u0435\u0442"]
)
def test_texts_that_the_vocabulary_does_not_know(vocabulary, text):
    rows = [Row("a good film", "yes"), Row(text, "yes")]
    tasks.register(NAME, {"train": lambda: rows, "test": lambda: rows[1:]}, vocabulary)
    [_, train, _] = data(32).train_notes()
    [_, test] = data(32).eval_set("test").notes
    for line, where in ((train, "train"), (test, "test")):
        assert line.startswith(f"warning: {NAME}, {where} split: ")
        assert "of the pieces of the inputs are unknown to the vocabulary" in line


def test_one_per_cent_is_no_warning(vocabulary):
    rows = [*[Row("a", "yes")] * 99, Row("a a a a", "yes")]
    tasks.register(NAME, {"train": lambda: rows}, vocabulary)
    [note] = data(4).train_notes()
    assert note.startswith(f"{NAME}, train split: TASK_FEATURE_LENGTHS cuts 1 of 100 inputs (1 %)")


def test_targets_of_the_catalogue_may_be_cut(tmp_path, vocabulary):
    (tmp_path / "xsum").mkdir()
    rows = [{"document": "a", "summary": "a " * n} for n in (2, 3, 4, 5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "xsum" / "train.jsonl").write_text(lines)
    all_tasks.register(vocabulary, tmp_path)
    [note] = data(32, "xsum_v110_examples").train_notes()
    assert "cuts 0 of 4 inputs (0 %) to 32 tokens and 2 of 4 targets (50 %) to 4 tokens" in note


def test_the_cache_keeps_the_counts(tmp_path, vocabulary, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": row.inputs, "label": "yes"}) + "\n" for row in ROWS)
    )
    files = tasks.TextFiles(train=str(path))
    tasks.register_files(NAME, files, vocabulary)
    cached = data(6, cache_dir=str(tmp_path / "cache"))
    [note] = cached.train_notes()
    monkeypatch.setattr(tokens, "chunks", None)  # nothing is tokenised again
    assert data(6, cache_dir=str(tmp_path / "cache")).train_notes() == [note]
    assert "cuts 5 of 10 inputs" in note


def test_of_a_stream_the_first_examples_count(vocabulary):
    seqio.TaskRegistry.remove(NAME)
    seqio.TaskRegistry.add(
        NAME,
        seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {"inputs": [row.inputs for row in ROWS], "targets": ["yes"] * len(ROWS)}
            ),
            splits=["train"],
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features=tasks.features(vocabulary),
    )
    [note] = data(6).train_notes()
    assert f"{NAME}, train split, first 10 examples: TASK_FEATURE_LENGTHS cuts 5 of 10" in note


def test_nothing_is_said_of_pieces_of_pre_training(tmp_path, vocabulary):
    """They have the inputs' full length by design, and keep no text."""
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "a.jsonl").write_text('{"text": "one two three four five six"}\n' * 50)
    all_tasks.register(vocabulary, tmp_path)
    assert TaskData("c4_v220_prefix_lm", {"inputs": 8, "targets": 8}, 2).train_notes() == []


def test_each_task_of_a_mixture_and_few_shots(vocabulary):
    tasks.register("short", {"train": lambda: ROWS[:2]}, vocabulary)
    tasks.add_mixture("both", {NAME: 1.0, "short": 1.0})
    notes = [note for note in data(6, "both").train_notes() if "cuts" in note]
    assert [note.split(" cuts ")[1].split()[0] for note in notes] == ["0", "5"]
    limited = few_shot.register(NAME, FewShot(10), {"inputs": 6, "targets": 4}, False)
    assert "cuts 5 of 10 inputs" in data(6, limited).train_notes()[0]


def test_training_tokens_are_made_once(monkeypatch):
    calls = []
    real = tokens.chunks
    monkeypatch.setattr(tokens, "chunks", lambda *args: calls.append(1) or real(*args))
    task = data(6)
    task.train_notes()
    batch = next(task.train_batches(0))
    assert len(calls) == 1
    assert batch["encoder_input_tokens"].dtype == np.int32
