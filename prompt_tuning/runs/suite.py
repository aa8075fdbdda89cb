"""A benchmark in one run: each of its tasks trained on its own, and the benchmark's score."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from prompt_tuning.methods.base import Method
from prompt_tuning.model.summary import plan
from prompt_tuning.runs import checks
from prompt_tuning.runs.result_file import ROWS, Results, by_task
from prompt_tuning.runtime import files
from prompt_tuning.runtime.files import renamed_when_done
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import T5Config


def suite(
    *,
    model_dir: str,
    tasks: Mapping[str, Callable[..., Mapping[str, Any]]],
    score: Callable[[Results], Mapping[str, float]],
    config: T5Config,
    method: Method,
    layout: Layout,
    on_start: Callable[[epath.Path], str | None] = lambda folder: None,
    dry_run: bool = False,
) -> Mapping[str, Any]:
    """Trains one task after the other and scores them together.

    Each task has its own folder `MODEL_DIR/NAME`, as `runs.train.train` writes it. A task with a
    `result.json` is finished and not run again; one that was stopped goes on. At the end comes a
    table a row a task, also in `MODEL_DIR/suite.md`, and all numbers in `MODEL_DIR/suite.json`.

    Args:
      model_dir: the suite's folder.
      tasks: by the names of their folders: `runs.train.train` with its settings, but for the
        folder; the suite's results are in the order in which they are here.
      score: from metrics by SeqIO task to the benchmark's scores; none if a task is missing.
      config, method, layout: the model, for a dry run to show.
      on_start: called with the folder when the first task's settings have proved good.
      dry_run: print parameters and shardings, allocate and write nothing.

    Returns:
      The content of `suite.json`.
    """
    if dry_run:
        print(plan(config, method, layout))
        return {}
    folder = checks.output_folder("MODEL_DIR", model_dir)
    results = {
        name: _result(folder, name, train, on_start=lambda _: on_start(folder))
        for name, train in tasks.items()
    }
    found = {name: by_task(result) for name, result in results.items()}
    scores = {
        row: dict(score({task: rows[row] for one in found.values() for task, rows in one.items()}))
        for row in ROWS
    }
    summary = {"tasks": found, "scores": scores}
    files.write_json(folder / "suite.json", summary)
    table = _table(found, scores)
    with renamed_when_done(folder / "suite.md") as temporary:
        temporary.write_text(table + "\n")
    print(f"\n{table}\n\nThe table and suite.json are in {folder}", flush=True)
    return summary


def _result(
    folder: epath.Path,
    name: str,
    train: Callable[..., Mapping[str, Any]],
    on_start: Callable[[epath.Path], str | None],
) -> Mapping[str, Any]:
    finished = folder / name / "result.json"
    if finished.exists():
        print(f"{name}: finished, as {finished} says", flush=True)
        return json.loads(finished.read_text())
    print(f"\n{name}", flush=True)
    return train(model_dir=str(folder / name), on_start=on_start)


def _table(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]], scores: Mapping[str, Mapping[str, float]]
) -> str:
    """A Markdown table: a row a task and a score, several metrics of a task by " / "."""
    lines = [("task", "split", "metric", *ROWS), ("---", "---", "---", *["---:"] * len(ROWS))]
    for name, of_tasks in found.items():
        for task, one in of_tasks.items():
            shown = name if len(of_tasks) == 1 else f"{name}: {task}"
            values = (" / ".join(f"{value:.4f}" for value in one[row].values()) for row in ROWS)
            lines.append((shown, one["split"], " / ".join(one[ROWS[0]]), *values))
    for score in scores[ROWS[0]]:
        lines.append((score, "", "", *(f"{scores[row][score]:.4f}" for row in ROWS)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
