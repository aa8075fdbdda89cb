"""A benchmark in one run: each of its tasks trained on its own, and the benchmark's score."""

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.validation import Metrics
from prompt_tuning.runs import checks
from prompt_tuning.runs.result_file import ROWS, Result
from prompt_tuning.runtime import files
from prompt_tuning.runtime.files import renamed_when_done

OnStart = Callable[[epath.Path], str | None]


def train_tasks(
    *,
    model_dir: str,
    tasks: Mapping[str, Callable[..., Result]],
    score: Callable[[Mapping[str, Metrics]], Mapping[str, float]],
    on_start: OnStart = lambda folder: None,
) -> Mapping[str, Any]:
    """Trains the tasks one after the other and scores them together.

    Each task has its own folder `MODEL_DIR/NAME`, with the files that `runs.train.train` writes. A
    finished task is not run again if its settings are the same, else the suite ends with an error
    that lists them; one that was interrupted resumes.
    Finally writes a table with one row per task and score, `MODEL_DIR/suite.md`, and all numbers,
    `MODEL_DIR/suite.json`.

    Args:
      model_dir: Folder of the suite.
      tasks: `runs.train.train` with its settings except the folder, by the names of the tasks'
        folders; the table keeps this order.
      score: Function from metrics by SeqIO task to the benchmark's scores; returns none if a task
        is missing.
      on_start: Function called with the folder once the first task's settings are checked.

    Returns:
      The content of `suite.json`.
    """
    folder = checks.output_folder("MODEL_DIR", model_dir)
    by_folder = {
        name: _measured(result) for name, result in results(folder, tasks, on_start).items()
    }
    by_task = {task: rows for tasks in by_folder.values() for task, rows in tasks.items()}
    scores = {row: dict(score({task: by_task[task][row] for task in by_task})) for row in ROWS}
    summary = {"tasks": by_folder, "scores": scores}
    files.write_json(folder / "suite.json", summary)
    table = _table(by_folder, scores)
    with renamed_when_done(folder / "suite.md") as temporary:
        temporary.write_text(table + "\n")
    print(f"\n{table}\n\nThe table and suite.json are in {folder}", flush=True)
    return summary


def results(
    folder: epath.Path, tasks: Mapping[str, Callable[..., Result]], on_start: OnStart
) -> dict[str, Result]:
    """Trains the tasks that are not finished, and returns the results of all by name.

    Args:
      folder: Folder of the runs; each has its own folder in it, by its name.
      tasks: See `train_tasks`.
      on_start: Function called with `folder` once a task's settings are checked.

    Raises:
      UserError: If two of them measure one SeqIO task, of which a score could have one only.
    """
    found: dict[str, Result] = {}
    for name, train in tasks.items():
        result = _result(folder, name, train, on_start=lambda _: on_start(folder))
        for other, earlier in found.items():
            if both := sorted(result.scores.keys() & earlier.scores.keys()):
                raise UserError(
                    f"TASKS: {other!r} and {name!r} are both measured on {both[0]}, which would "
                    f"count once; leave one out, or give it a suite of its own (the results of "
                    f"both are in {folder})"
                )
        found[name] = result
    return found


def _result(
    folder: epath.Path, name: str, train: Callable[..., Result], on_start: OnStart
) -> Result:
    print(f"\n{name}", flush=True)
    return train(model_dir=str(folder / name), on_start=on_start, measure_again=False)


def _measured(result: Result) -> dict[str, dict[str, Any]]:
    """Split, best step and rows of metrics by SeqIO task."""
    return {
        task: {"split": result.splits[task], "best_step": result.best_step, **rows}
        for task, rows in result.of_first_method().items()
    }


def _table(
    by_folder: Mapping[str, Mapping[str, Mapping[str, Any]]],
    scores: Mapping[str, Mapping[str, float]],
) -> str:
    """A Markdown table with one row per task and score; metrics of a task are joined by " / "."""
    lines = [("task", "split", "metric", *ROWS), ("---", "---", "---", *["---:"] * len(ROWS))]
    for name, tasks in by_folder.items():
        for task, measured in tasks.items():
            shown = name if len(tasks) == 1 else f"{name}: {task}"
            values = (" / ".join(f"{x:.4f}" for x in measured[row].values()) for row in ROWS)
            lines.append((shown, measured["split"], " / ".join(measured[ROWS[0]]), *values))
    for name in scores[ROWS[0]]:
        lines.append((name, "", "", *(f"{scores[row][name]:.4f}" for row in ROWS)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
