"""What a finished cell leaves: one JSON record, and the files that are worth their space.

A record is {"status": "done" | "failed", "error", "results", "trained_parameters",
"total_parameters", "best_step", "steps", "seconds", "version", "config"}. A result is {"task",
"split", "row", "metrics", "run", "constant"}: the metrics are those of the first evaluation
method, "run" is the name of the step, and "constant" says whether all answers are the same, or is
None if that is unknown.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning import __version__
from prompt_tuning.checkpoint import card, trained_data
from prompt_tuning.experiments.grid import Cell, Experiment, Step
from prompt_tuning.experiments.results.scores import ENSEMBLE, VALIDATION
from prompt_tuning.runs import result_file
from prompt_tuning.runs.result_file import ROWS, TRAINED, Result
from prompt_tuning.runtime import files
from prompt_tuning.runtime.files import renamed_when_done

RECORD = "record.json"
STEP_DONE = "done.json"
TABLE, TIMINGS = "table.jsonl", "timings.jsonl"

Record = dict[str, Any]


def read(folder: Path) -> Record | None:
    """Returns a cell's record; None if it is neither done nor failed."""
    path = folder / RECORD
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    for result in record["results"]:
        result["metrics"] = files.from_json(json.dumps(result["metrics"]))
    return record


def step_is_done(folder: Path, step: Step) -> bool:
    return _end(folder, step).exists()


def end_step(folder: Path, step: Step, seconds: float) -> None:
    if not step_is_done(folder, step):
        files.write_json(_end(folder, step), {"seconds": seconds})


def fail(folder: Path, error: str) -> None:
    """Records that a cell has failed, and why."""
    files.write_json(folder / RECORD, {"status": "failed", "error": error, **_numbers(folder, ())})


def finish(folder: Path, steps: Sequence[Step], keep_weights: bool) -> None:
    """Records a cell's results, and removes its checkpoints."""
    record = {"status": "done", "error": None, **_numbers(folder, steps)}
    for step in steps:
        if step.command == "train":
            _drop(folder / step.name, keep_weights)
    files.write_json(folder / RECORD, record)


def collect(experiment: Experiment, cells: Sequence[Cell]) -> tuple[list[Record], list[Record]]:
    """Returns the records of the cells that have one, and their times: {"cell", "seconds"}.

    Both are sorted by the cells' names. Everything that differs between two runs of the same cells,
    in whatever order and after however many kills, is in the times.
    """
    table, timings = [], []
    for cell in sorted(cells, key=lambda cell: cell.name):
        record = read(experiment.cell_folder(cell))
        if record is None:
            continue
        timings.append({"cell": cell.name, "seconds": record.pop("seconds")})
        names = experiment.short_names(cell.axes)
        for result in record["results"]:
            result["task"] = short_name(result["task"], names)
        if record["config"]:
            record["config"] = f"../cells/{cell.digest}/{record['config']}"
        about = {"experiment": experiment.name, "cell": cell.name, "axes": dict(cell.axes)}
        table.append({**about, **record})
    return table, timings


def write_table(experiment: Experiment, cells: Sequence[Cell]) -> list[Record]:
    """Writes `table.jsonl` and `timings.jsonl` to the experiment's folder; returns the former."""
    table, timings = collect(experiment, cells)
    experiment.make_root()
    for name, lines in ((TABLE, table), (TIMINGS, timings)):
        with renamed_when_done(experiment.folder / name) as temporary:
            temporary.write_text("".join(files.to_json(line) + "\n" for line in lines))
    return table


def short_name(task: str, names: Mapping[str, str]) -> str:
    """Returns a task's name in tables; one with sentinels or few examples has the plain task's."""
    plain = trained_data.plain_name(task)
    return names.get(task) or names.get(plain, plain)


def _numbers(folder: Path, steps: Sequence[Step]) -> Record:
    first = _of_first(folder / steps[0].name, steps[0]) if steps else {}
    numbers = ("trained_parameters", "total_parameters", "best_step", "steps")
    return {
        "results": [result for step in steps for result in _results(folder / step.name, step)],
        **{name: first.get(name) for name in numbers},
        "seconds": round(sum(_seconds(folder, step) for step in steps), 1),
        "version": __version__,
        "config": f"{steps[0].name}/config.gin" if steps else None,
    }


def _of_first(folder: Path, step: Step) -> Record:
    """Returns the numbers of a record that the cell's first step determines."""
    if step.command != "train":
        return json.loads((folder / "parameters.json").read_text())
    last = card.read(folder / "trained_last.safetensors")
    steps = last.steps if last else None
    return {**dataclasses.asdict(Result.read(folder)), "steps": steps}


def _results(folder: Path, step: Step) -> Iterator[Record]:
    if step.command == "train":
        yield from _of_training(Result.read(folder), step.name)
        return
    row = ENSEMBLE if step.command == "ensemble" else TRAINED
    ending = "-metrics.json"
    for path in sorted(folder.glob(f"*{ending}")):
        stem = path.name.removesuffix(ending)
        task, _, split = stem.rpartition("-")
        metrics = files.from_json(path.read_text())
        method = next(iter(metrics)).partition("/")[0]
        yield {
            "task": task,
            "split": split,
            "row": row,
            "metrics": result_file.of_first_method(metrics),
            "run": step.name,
            "constant": _distinct(folder / f"{stem}-{method}.jsonl") == 1,
        }


def _of_training(result: Result, run: str) -> Iterator[Record]:
    for task, rows in result.of_first_method().items():
        distinct = result.distinct_answers.get(task)
        for row in ROWS:
            yield {
                "task": task,
                "split": result.splits[task],
                "row": row,
                "metrics": rows[row],
                "run": run,
                "constant": distinct == 1 if row == TRAINED and distinct else None,
            }
        if len(result.scores) == 1:
            yield {
                "task": task,
                "split": "validation",
                "row": VALIDATION,
                "metrics": result_file.of_first_method(result.validation),
                "run": run,
                "constant": None,
            }


def _distinct(path: Path) -> int:
    """Counts the different predictions of a file of predictions."""
    with path.open() as lines:
        return len({json.loads(line)["prediction"] for line in lines})


def _end(folder: Path, step: Step) -> Path:
    """Returns the file that marks the end of a step: the last one that `train` writes, or our own
    after the other commands.
    """
    return folder / step.name / (result_file.NAME if step.command == "train" else STEP_DONE)


def _seconds(folder: Path, step: Step) -> float:
    return json.loads(_end(folder, step).read_text())["seconds"]


def _drop(folder: Path, keep_weights: bool) -> None:
    for path in (*folder.glob("checkpoint_*"), folder / "best"):
        if path.is_dir():
            shutil.rmtree(path)
    result = Result.read(folder)
    if result.trained_parameters == result.total_parameters and not keep_weights:
        for path in folder.glob("trained_*.safetensors"):
            path.unlink()
