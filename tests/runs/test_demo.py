"""`make demo`: its table, its files, and the batch of all tasks."""

import json
import re

import numpy as np
import pytest
from etils import epath

import prompt_tuning
from prompt_tuning import embedded, sharding
from prompt_tuning.checkpoint import prompts
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.variants.prompt_design import designed_data
from prompt_tuning.methods import PromptDesign
from prompt_tuning.runs import demo
from prompt_tuning.runs.result_file import ROWS, Result
from prompt_tuning.t5.config import preset
from prompt_tuning.training.metrics_writer import MetricsWriter

NAMES = ("reviews", "questions", "topics")


def stub_train(name: str):
    """A run that trains nothing: writes a prompt of zeros and two lines of validation."""

    def train(*, model_dir: str, on_start, measure_again: bool) -> Result:
        task = f"demo_{name}"
        with_prompt = epath.Path(model_dir)
        with_prompt.mkdir(parents=True)
        prompts.save(with_prompt / "prompt_best.npy", np.zeros((2, 256), np.float32))
        log = MetricsWriter(with_prompt / "inference_eval" / task)
        for step in (0, 4):
            log.write(step, {"rank/accuracy": 0.25 + step / 8})
        log.close()
        scores = {row: {"rank/accuracy": 0.5 + i / 8} for i, row in enumerate(ROWS)}
        result = Result(
            task, {task: "test"}, {task: scores}, 4, {"rank/accuracy": 0.75}, 1, 2, 0, 1
        )
        result.write(with_prompt)
        return result

    return train


@pytest.fixture(scope="module")
def folder_and_contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "runs"
    lengths = {"inputs": 96, "targets": 8}
    contents = demo.demo(
        model_dir=str(folder),
        tasks={name: stub_train(name) for name in NAMES},
        by_hand={
            name: designed_data(
                TaskData(f"demo_{name}", lengths, 16, eval_examples=16), "{labels}:"
            )
            for name in NAMES
        },
        config=preset("demo"),
        method=PromptDesign(),
        layout=sharding.layout(),
        initial_checkpoint=embedded.backbone(),
        eval_batch_size=16,
    )
    return folder, contents


def test_a_list_holds_the_results_of_all_tasks(folder_and_contents):
    folder, contents = folder_and_contents
    assert json.loads((folder / "result.json").read_text()) == contents
    assert [content["task"] for content in contents] == [f"demo_{name}" for name in NAMES]
    for name, content in zip(NAMES, contents, strict=True):
        of_run = json.loads((folder / name / "result.json").read_text())
        assert of_run.items() <= content.items()
        assert content["by_hand"]["rank/accuracy"] * 16 == pytest.approx(
            round(content["by_hand"]["rank/accuracy"] * 16)
        )
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_per_task(folder_and_contents):
    _, contents = folder_and_contents
    head, _, *rows = demo.table(contents).splitlines()
    assert head.split("  ")[-1] == "prompt"
    assert [row.split()[0] for row in rows] == [f"demo_{name}" for name in NAMES]
    by_hand = f"{contents[0]['by_hand']['rank/accuracy']:.3f}"
    assert rows[0].split()[1:] == ["0.500", "0.625", by_hand, "0.750"]


def test_a_batch_of_all_tasks_is_answered_as_each_task_alone():
    model = prompt_tuning.load("demo", input_length=64)
    for name in NAMES:
        labels = TaskData(f"demo_{name}", {"inputs": 8, "targets": 8}, 8).labels
        model.add_task(name, np.zeros((2, 256), np.float32), labels)
    header, *lines, accuracy = demo.mixed(model, most=16).splitlines()
    assert header.split() == ["task", "text", "answer", "p", "right", "answer"]
    assert [line.split()[0] for line in lines] == [name for name in NAMES for _ in range(2)]
    accuracies = re.findall(r"(\w+) (\d\.\d\d)", accuracy.partition(": ")[2])
    assert accuracy.startswith("accuracy of 48 rows, mixed: ")
    assert [name for name, _ in accuracies] == list(NAMES)
    for task, share in accuracies:
        rows = demo._test_rows(task, model.labels(task))[:16]
        answers = model.classify([row.inputs for row in rows], task)
        right = [answer.label == row.targets for answer, row in zip(answers, rows, strict=True)]
        assert share == f"{sum(right) / 16:.2f}"
