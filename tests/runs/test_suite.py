"""A benchmark in one run: which tasks it trains, what it resumes from, and its table."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import gin
import pytest
from etils import epath

from prompt_tuning.checkpoint import backbone
from prompt_tuning.cli import gin_parsing
from prompt_tuning.data.catalogue import glue
from prompt_tuning.data.catalogue.glue_metrics import SUPER_GLUE
from prompt_tuning.errors import UserError
from prompt_tuning.methods import ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs.result_file import ROWS, Result
from prompt_tuning.runs.suite import train_tasks
from prompt_tuning.t5.config import preset
from prompt_tuning.testing import (
    CommandResult,
    assert_mistake,
    clean_registries,
    random_leaves,
    run_command,
)


def rows_of(**metrics: float) -> dict:
    """Rows of metrics whose values differ by 0.1."""
    return {
        row: {f"rank/{name}": value + i / 10 for name, value in metrics.items()}
        | {"generate/accuracy": 9.0}
        for i, row in enumerate(ROWS)
    }


def result(task: str, splits: dict, scores: dict) -> Result:
    return Result(task, splits, scores, 3, {"rank/accuracy": 0.5}, 64, 1_000, 0, 1.5)


RESULTS = {
    "a": result("task_a", {"task_a": "validation"}, {"task_a": rows_of(f1=0.2, accuracy=0.4)}),
    "mnli": result(
        "mnli",
        {"matched": "validation", "mismatched": "test"},
        {"matched": rows_of(accuracy=0.3), "mismatched": rows_of(accuracy=0.5)},
    ),
}


class Runs:
    """Stands for `runs.train.train`: notes its calls, and writes a result or fails."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = ""

    def of(self, name: str):
        def train(*, model_dir, on_start, measure_again):
            assert not measure_again
            if Result.exists(model_dir):
                return Result.read(model_dir)
            self.calls.append(name)
            on_start(Path(model_dir))
            if name == self.fails:
                raise FloatingPointError("the loss is not finite")
            Path(model_dir).mkdir(parents=True)
            RESULTS[name].write(epath.Path(model_dir))
            return RESULTS[name]

        return train


def mean(results) -> dict[str, float]:
    return {"score": sum(sum(m.values()) / len(m) for m in results.values()) / len(results)}


def run(folder: Path, runs: Runs, **settings) -> dict:
    tasks = {name: runs.of(name) for name in RESULTS}
    return train_tasks(model_dir=str(folder), tasks=tasks, score=mean, **settings)


def test_summary_and_table(tmp_path, capsys):
    started = []
    summary = run(tmp_path, Runs(), on_start=started.append)
    assert {str(path) for path in started} == {str(tmp_path)}
    assert json.loads((tmp_path / "suite.json").read_text()) == summary
    assert summary["tasks"]["a"] == {
        "task_a": {
            "split": "validation",
            "best_step": 3,
            "majority": {"f1": 0.2, "accuracy": 0.4},
            "frozen": pytest.approx({"f1": 0.3, "accuracy": 0.5}),
            "trained": pytest.approx({"f1": 0.4, "accuracy": 0.6}),
        }
    }
    assert summary["tasks"]["mnli"]["mismatched"]["split"] == "test"
    # The mean of task_a (0.3), matched (0.3) and mismatched (0.5), and 0.1 more a row.
    scores = {row: actual["score"] for row, actual in summary["scores"].items()}
    assert scores == pytest.approx({"majority": 1.1 / 3, "frozen": 1.4 / 3, "trained": 1.7 / 3})
    table = (tmp_path / "suite.md").read_text()
    assert table in capsys.readouterr().out
    lines = table.splitlines()
    assert lines[2] == (
        "| a | validation | f1 / accuracy | 0.2000 / 0.4000 | 0.3000 / 0.5000 | 0.4000 / 0.6000 |"
    )
    assert lines[4].startswith("| mnli: mismatched | test | accuracy | 0.5000 |")
    assert lines[-1] == "| score |  |  | 0.3667 | 0.4667 | 0.5667 |"


def test_resumes_with_what_is_not_finished(tmp_path):
    runs = Runs()
    runs.fails = "mnli"
    with pytest.raises(FloatingPointError):
        run(tmp_path, runs)
    assert not (tmp_path / "suite.json").exists()
    runs.fails = ""
    summary = run(tmp_path, runs)
    assert runs.calls == ["a", "mnli", "mnli"]
    assert run(tmp_path, runs) == summary
    assert runs.calls == ["a", "mnli", "mnli"]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "mnli", "a"), ("mnli", "b")])
def test_a_task_that_two_runs_measure(names, tmp_path, monkeypatch):
    """A score had the last one's metrics, whatever its place in the table."""
    both = RESULTS["a"].scores | {"mismatched": rows_of(accuracy=0.9)}
    again = result("b", {"task_a": "validation", "mismatched": "test"}, both)
    monkeypatch.setitem(RESULTS, "b", again)
    runs = Runs()
    tasks = {name: runs.of(name) for name in names}
    with pytest.raises(
        UserError, match=r"TASKS: '\w+' and '\w+' are both measured on (task_a|mis)"
    ):
        train_tasks(model_dir=str(tmp_path), tasks=tasks, score=mean)
    assert not (tmp_path / "suite.json").exists()


def test_no_score_where_a_task_is_missing(tmp_path):
    tasks = {"a": Runs().of("a")}
    summary = train_tasks(model_dir=str(tmp_path), tasks=tasks, score=glue.scores)
    assert summary["scores"] == {"majority": {}, "frozen": {}, "trained": {}}


@pytest.fixture
def super_glue(first_rows):
    """`runs/super_glue.gin`'s tasks, on real examples."""
    gin.clear_config()
    gin_parsing.search([str(gin_parsing.configs_folder())])
    for name in ("models/demo.gin", "methods/prompt_tuning.gin", "runs/super_glue.gin"):
        gin.parse_config_file(name)
    gin.bind_parameter("BENCHMARKS_DIR/gin.macro.value", str(first_rows))
    gin.bind_parameter("INPUT_LENGTH/gin.macro.value", 64)
    with clean_registries():
        yield gin.query_parameter("TASKS/gin.macro.value")
    gin.clear_config()


def test_super_glue_is_of_all_its_tasks(super_glue):
    assert tuple(super_glue) == SUPER_GLUE
    from prompt_tuning.data.source import task_data

    measured = {}
    for name, reference in super_glue.items():
        assert reference.scopes == [name]
        with gin.config_scope(name):
            data = gin.get_configurable(task_data)()
        assert {"train", "validation"} <= set(data.splits)
        assert data.lengths["inputs"] == 64
        assert next(data.train_batches(0))["encoder_input_tokens"].shape[0] == 32
        [eval_set] = data.eval_sets("validation")
        measured[eval_set.task] = {"metric": 0.5}
    assert glue.scores(measured) == {"super_glue_score": 0.5}


# Nano-size, on bytes.
NANO = """
from __gin__ import dynamic_registration
include 'common/t5.gin'
import seqio
MODEL_PRESET = 'nano'
ACTIVATION_DTYPE = 'float32'
VOCABULARY = @seqio.ByteVocabulary()
seqio.ByteVocabulary.extra_ids = 0
"""
CB = [{"premise": f"Premise {i}.", "hypothesis": "It is.", "label": i % 3} for i in range(8)]
WSC = [
    {
        "text": f"Ann gave Eve {i} figs for she was kind.",
        "span1_text": "Ann",
        "span1_index": 0,
        "span2_text": "she",
        "span2_index": 6,
        "label": i % 2,
    }
    for i in range(8)
]


@pytest.fixture
def two_tasks(tmp_path) -> Iterator[Callable[..., CommandResult]]:
    """Runs the command on CB and WSC."""
    shapes = ParamSplit.of(preset("nano"), ModelTuning()).shapes
    backbone.save(tmp_path / "nano.safetensors", random_leaves(shapes), "float32")
    (tmp_path / "nano.gin").write_text(NANO)
    for name, rows in (("cb", CB), ("wsc", WSC)):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / "tasks" / name / f"{split}.jsonl").write_text(lines)
    files = (f"{tmp_path}/nano.gin", "methods/prompt_tuning.gin", "runs/super_glue.gin")
    settings = {
        "INITIAL_CHECKPOINT_PATH": f"{tmp_path}/nano.safetensors",
        "BENCHMARKS_DIR": f"{tmp_path}/tasks",
        "TASKS": "{'cb': @cb/train.train, 'wsc': @wsc/train.train}",
        "SampledVocabulary.top": "100",
        "PROMPT_LENGTH": "4",
        "INPUT_LENGTH": "48",
        "BATCH_SIZE": "8",
        "EVAL_BATCH_SIZE": "8",
        "TRAIN_STEPS": "2",
        "wsc/loop.Fit.total_steps": "1",
    }

    def run(*arguments: str) -> CommandResult:
        flags = (f"--gin.{name}={value}" for name, value in settings.items())
        gin_files = (f"--gin_file={name}" for name in files)
        return run_command(train_tasks, *gin_files, *flags, *arguments)

    with clean_registries():
        yield run


def test_command(two_tasks, tmp_path):
    folder = tmp_path / "suite"
    result = two_tasks(f"--gin.MODEL_DIR={folder}")
    assert result.status == 0, result.err
    assert (folder / "cb" / "checkpoint_2").is_dir()
    assert (folder / "wsc" / "checkpoint_1").is_dir()  # as its scope says
    assert "@cb/train.train" in (folder / "config.gin").read_text()
    measured = json.loads((folder / "suite.json").read_text())["tasks"]
    [cb], [wsc] = measured["cb"].values(), measured["wsc"].values()
    # 3, 3 and 2 of the three labels: the first is guessed, of F1 2 * 3 / (8 + 3).
    f1 = 2 * 3 / (8 + 3) / 3
    assert cb["majority"] == pytest.approx({"mean_3class_f1": f1, "accuracy": 3 / 8})
    assert wsc["majority"] == {"accuracy": 0.5}
    assert (folder / "suite.md").read_text() in result.out
    before = (folder / "suite.json").read_bytes()
    (folder / "suite.json").unlink()
    result = two_tasks(f"--gin.MODEL_DIR={folder}")
    assert result.status == 0, result.err
    assert (folder / "suite.json").read_bytes() == before
    assert f"cb\nalready finished, see {folder}/cb/result.json" in result.out
    assert "step 0" not in result.out
    for change, message in (
        ("LEARNING_RATE=0.1", "cb: this run was trained with LEARNING_RATE = 0.3, now 0.1"),
        ("wsc/source.task_data.seed=3", "wsc: this run was trained with RANDOM_SEED (data) = 0"),
    ):
        result = two_tasks(f"--gin.MODEL_DIR={folder}", f"--gin.{change}")
        assert_mistake(result, message)
        assert (folder / "suite.json").read_bytes() == before


def test_a_mistake_in_the_settings_of_one_task(two_tasks, tmp_path):
    arguments = (f"--gin.MODEL_DIR={tmp_path}/suite", "--gin.wsc/source.task_data.lengths=3")
    result = two_tasks(*arguments)
    assert_mistake(result, "error: task_data.lengths = 3: must be of type Mapping[str, int]")
    assert not (tmp_path / "suite").exists()
