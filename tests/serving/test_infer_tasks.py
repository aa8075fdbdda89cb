"""Rows of several tasks in one file: answers in its order, and the same after a kill."""

import datetime
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from prompt_tuning import sharding
from prompt_tuning.checkpoint import backbone, card, prompts
from prompt_tuning.data.readers import records
from prompt_tuning.errors import UserError
from prompt_tuning.methods import Method, ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs.infer import infer
from prompt_tuning.serving import model as serving
from prompt_tuning.serving.task_rows import TaskRows
from prompt_tuning.t5.config import preset
from prompt_tuning.testing import Numbers, random_leaves
from prompt_tuning.transformer.vocabulary import Bytes

ROWS = [
    {"text": f"row {i}", "task": "letters" if i % 2 else "free", "id": f"nº {i}"}
    for i in range(160)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A backbone, a task with two labels and one without, and rows of both."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    leaves = random_leaves(ParamSplit.of(preset("nano"), ModelTuning()).shapes)
    backbone.save(folder / "nano.safetensors", leaves, "float32")
    for name in ("letters", "free"):
        prompts.save(folder / "prompts" / f"{name}.npy", rng.normal(size=(4, 16)))
    (folder / "prompts" / "labels.json").write_text('{"letters": ["y", "n"]}')
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def run(
    folder: Path,
    output: Path,
    mode: str = "auto",
    allow_other_backbone: bool = False,
    **settings,
) -> None:
    defaults = {
        "file": str(folder / "in.jsonl"),
        "prompts": str(folder / "prompts"),
        "vocabulary": Bytes(),
        "batch_size": 4,  # of 64 rows that are written at once, 32 are of each task
        "input_length": 16,
        "target_length": 4,
    }
    infer(
        output_dir=str(output),
        config=preset("nano"),
        method=Method(),
        layout=sharding.layout(devices=jax.devices()[:2]),
        data=TaskRows(**defaults | settings),
        initial_checkpoint=str(folder / "nano.safetensors"),
        mode=mode,
        allow_other_backbone=allow_other_backbone,
    )


def test_answers_are_the_same_after_a_kill(folder, tmp_path, monkeypatch, capsys):
    run(folder, tmp_path / "whole")
    whole = tmp_path / "whole" / "tasks-auto.jsonl"
    lines = [json.loads(line) for line in whole.open()]
    assert [(x["inputs"], x["task"]) for x in lines] == [
        ({"inputs_pretokenized": row["text"], "id": row["id"]}, row["task"]) for row in ROWS
    ]
    assert "nº 1" in whole.read_text("utf-8")
    assert "rows: INPUT_LENGTH cuts 0 of 160 inputs (0 %) to 16 tokens" in capsys.readouterr().out
    for line in lines:
        by_label = line.get("probabilities")
        assert (by_label is None) == (line["task"] == "free")
        assert by_label is None or line["prediction"] == max(by_label, key=by_label.__getitem__)

    path, classify = tmp_path / "out" / "tasks-auto.jsonl", serving.Model.classify

    def killed(model, texts, task):
        if "row 101" in texts:
            raise KeyboardInterrupt
        return classify(model, texts, task)

    monkeypatch.setattr(serving.Model, "classify", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out")
    assert not path.exists()
    monkeypatch.undo()
    capsys.readouterr()
    run(folder, tmp_path / "out")
    assert "resuming at line 65 of 160" in capsys.readouterr().out
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.filterwarnings("ignore:texts of more tokens")
def test_a_cut_to_the_length_of_the_training_says_so(folder, tmp_path, capsys):
    arrays = {name: np.ones((4, 16)) for name in ("letters", "free")}
    for name, array in arrays.items():
        prompts.save(tmp_path / "prompts" / f"{name}.npy", array)
    texts = dict.fromkeys(("backbone", "method", "initialisation", "optimizer", "version"), "")
    numbers = {"d_model": 16, "length": 4, "learning_rate": 0.3, "steps": 1}
    trained_with = card.TrainedWith(lengths={"inputs": 4, "targets": 2})
    letters = card.Card(
        fingerprint="",
        task="letters",
        placement="prefix",
        metric={},
        config="",
        trained_with=trained_with,
        **texts,
        **numbers,
    )
    card.save(tmp_path / "prompts" / "letters.npy", letters)
    settings = {"prompts": str(tmp_path / "prompts"), "input_length": 4}
    run(folder, tmp_path / "out", mode="generate", allow_other_backbone=True, **settings)
    lines = capsys.readouterr().out
    assert "rows: INPUT_LENGTH cuts 80 of 80 inputs (100 %) to 4 tokens; raise the length" in lines
    assert (
        "rows: the length of the training cuts 80 of 80 inputs (100 %) to 4 tokens; train w"
        in lines
    )


def test_answers_are_as_long_as_in_training(folder, tmp_path, monkeypatch):
    """Above TARGET_LENGTH, which is 4, for the task whose card says so."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 3, (4, 16)) for name in ("letters", "free")}
    for name, array in arrays.items():
        prompts.save(tmp_path / "prompts" / f"{name}.npy", array)
    texts = ("backbone", "fingerprint", "method", "initialisation", "optimizer", "version")
    of_letters = card.Card(
        task="letters",
        placement="prefix",
        metric={},
        config="",
        trained_with=card.TrainedWith(lengths={"inputs": 12, "targets": 9}),
        **dict.fromkeys(texts, ""),
        d_model=16,
        length=4,
        learning_rate=0.3,
        steps=1,
    )
    card.save(tmp_path / "prompts" / "letters.npy", of_letters)
    settings = {"prompts": str(tmp_path / "prompts"), "allow_other_backbone": True}
    limits, generate = {}, serving.Model.generate

    def recorded(model, texts, task, *, max_tokens):
        limits.update(zip(task, max_tokens, strict=True))
        return generate(model, texts, task, max_tokens=max_tokens)

    monkeypatch.setattr(serving.Model, "generate", recorded)
    run(folder, tmp_path / "out", mode="generate", **settings)
    assert limits == {"letters": 9, "free": 4}


@pytest.mark.parametrize(
    ("texts", "share"),
    [(["2 4 5", "5 6"], "14.3"), (["4 5", "6 7"], "")],
)
@pytest.mark.filterwarnings("ignore:the vocabulary does not know most characters")
def test_texts_that_the_vocabulary_does_not_know_are_counted(
    folder, tmp_path, capsys, texts, share
):
    """2 is the unknown piece; each text has an end token too."""
    rows = [{"text": text, "task": "free"} for text in texts]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts.save(tmp_path / "prompts" / "free.npy", np.ones((4, 16)))
    paths = {"file": str(tmp_path / "in.jsonl"), "prompts": str(tmp_path / "prompts")}
    run(folder, tmp_path / "out", vocabulary=Numbers(), **paths)
    lines = capsys.readouterr().out
    assert ("are unknown to the vocabulary" in lines) == bool(share)
    assert not share or f"warning: rows: {share} % of the pieces of the inputs" in lines


def test_a_date_is_passed_on_as_its_text(monkeypatch):
    """Saved data sets have such columns, JSON lines do not."""
    fields = {"text": "a", "task": "free", "day": datetime.date(2026, 1, 2), "id": 7}
    monkeypatch.setattr(records, "read", lambda path, row, *_: [row(fields, "row 1")])
    [row] = TaskRows("saved", "prompts", Bytes()).rows(["free"])
    assert row.columns == {"day": "2026-01-02", "id": 7}


def test_skipped_rows_are_counted_at_the_end(folder, tmp_path, capsys):
    rows = [*ROWS[:3], {"text": "", "task": "free"}, {"text": "no task"}]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(folder, tmp_path / "out", file=str(file), skip_bad_rows=2)
    assert capsys.readouterr().out.endswith(f"bad rows skipped: 2 ({file} 2)\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "rank"}, "MODE = 'rank', but the task free has no labels"),
        ({"mode": "x"}, "MODE: unknown method 'x'; available: rank, generate, auto"),
        ({"mode": "predict"}, "MODE: unknown method 'predict'; .* T5X's predict is generate"),
        ({"prompts": "/no"}, "/no: no such folder of prompts"),
        ({"task_field": "text"}, r"in\.jsonl, line 1: 'text' is 'row 0', but "),
        ({"task_field": "y"}, r"in\.jsonl, line 1: no field 'y'; available: id, task, text"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(folder, tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        run(folder, tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", [7, 7.5, True, None])
def test_a_task_that_is_no_string(task, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a", "task": task}))
    rows = TaskRows(str(tmp_path / "rows.jsonl"), "prompts", Bytes())
    with pytest.raises(UserError, match=f'is {task}, which is no string; write "{task}"'):
        rows.rows([str(task)])
