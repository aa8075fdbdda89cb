"""Metrics that are not numbers: never the best ones, and never invalid JSON."""

import json
import math
from types import SimpleNamespace

import pytest
from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import validation
from prompt_tuning.evaluation.validation import Validation
from prompt_tuning.experiments import records
from prompt_tuning.methods import PromptTuning
from prompt_tuning.runs.result_file import ROWS, Result
from prompt_tuning.runtime import files
from prompt_tuning.testing import tiny_model
from prompt_tuning.training.metrics_writer import MetricsWriter, read_metrics

NAN, INF = math.nan, math.inf


def strict(text: str):
    """Parses JSON as other programs do, which know no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def validated(folder, values, monkeypatch) -> Validation:
    """A validation whose tasks scored `values` {task: [value of step 0, 1, ...]}."""
    tuned, sets = tiny_model(PromptTuning(2)), [SimpleNamespace(task=task) for task in values]
    of_task = {task: iter(numbers) for task, numbers in values.items()}

    def score(_, data, *__) -> dict[str, float]:
        return {"rank/m": next(of_task[data.task])}

    monkeypatch.setattr(validation, "score", score)
    actual = Validation(folder, sets, ("auto",), 4)
    for step in range(len(next(iter(values.values())))):
        actual(tuned, step)
    return actual


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({"a": [NAN, 0.4, 0.5]}, 2),
        ({"a": [0.4, NAN, 0.3]}, 0),
        ({"a": [INF, 0.4]}, 1),
        ({"a": [-INF, NAN, -3.0]}, 2),
        ({"a": [0.9, 0.1, 0.2], "b": [NAN, 0.5, 0.1]}, 1),
    ],
)
def test_a_step_without_a_number_is_never_the_best(values, best, tmp_path, monkeypatch, capsys):
    """Also when the metrics are read again, as a run that resumes reads them."""
    tuned = tiny_model(PromptTuning(2))
    with validated(tmp_path, values, monkeypatch) as actual:
        assert actual.best(tuned.trained)[0] == best
    assert "cannot be the best one: rank/m of " in capsys.readouterr().out
    with Validation(tmp_path, [SimpleNamespace(task=t) for t in values], ("auto",), 4, 9) as again:
        assert again.best(tuned.trained)[0] == best
    for log in tmp_path.glob("inference_eval/*/metrics.jsonl"):
        assert all(map(strict, log.read_text().splitlines()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": [NAN]}, "rank/m of a is nan"),
        ({"a": [NAN, INF]}, "rank/m of a is inf"),
        ({"a": [0.5, 0.6], "b": [NAN, NAN]}, "rank/m of b is nan"),
        ({"a": [0.5, NAN], "b": [NAN, NAN]}, "rank/m of a is nan, rank/m of b is nan"),
    ],
)
def test_a_run_without_any_number_names_the_metric(values, message, tmp_path, monkeypatch):
    with validated(tmp_path, values, monkeypatch) as actual, pytest.raises(UserError) as error:
        actual.best(tiny_model(PromptTuning(2)).trained)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_files_of_metrics_are_json(value, tmp_path):
    folder = epath.Path(tmp_path)
    rows = {row: {"rank/m": value, "rank/n": 0.5} for row in ROWS}
    Result("a", {"a": "test"}, {"a": rows}, 1, {"rank/m": 0.5}, 1, 2, 0, 1.5).write(folder)
    content = strict((folder / "result.json").read_text())
    assert content["scores"]["a"]["trained"] == {"rank/m": None, "rank/n": 0.5}
    assert math.isnan(Result.read(folder).scores["a"]["trained"]["rank/m"])

    writer = MetricsWriter(folder)
    writer.write(1, {"m": value, "n": 0.5})
    writer.close()
    assert strict((folder / "metrics.jsonl").read_text()) == {"step": 1, "m": None, "n": 0.5}
    [line] = read_metrics(folder / "metrics.jsonl")
    assert math.isnan(line["m"]) and line["n"] == 0.5

    record = {"results": [{"metrics": {"m": value}}], "error": None}
    files.write_json(folder / records.RECORD, record)
    assert strict((folder / records.RECORD).read_text())["results"] == [{"metrics": {"m": None}}]
    read = records.read(tmp_path)
    assert math.isnan(read["results"][0]["metrics"]["m"]) and read["error"] is None


def test_another_first_metric_does_not_go_on_choosing_the_best_step(tmp_path, monkeypatch):
    with validated(tmp_path, {"a": [0.4]}, monkeypatch):
        pass

    def other(targets, predictions) -> dict[str, float]:
        return {"other": 1.0}

    data = SimpleNamespace(
        task="a", labels=("x",), targets=["x"], metric_fns=[other], first_metric=[]
    )
    trained = tiny_model(PromptTuning(2)).trained
    with pytest.raises(UserError, match="chooses its best step by 'm', not 'other'; put it first"):
        validation.check_resumes(tmp_path, [data], ("auto",), trained, 0)
