"""What a finished cell leaves: one JSON record, and the files that are worth their space."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning import __version__
from prompt_tuning.checkpoint import card
from prompt_tuning.experiments.grid import Cell, Experiment, Step
from prompt_tuning.runs import result_file
from prompt_tuning.runs.result_file import ROWS, Result
from prompt_tuning.runtime import files
from prompt_tuning.runtime.files import renamed_when_done

RECORD = "record.json"
STEP_DONE = "done.json"
TABLE, TIMINGS = "table.jsonl", "timings.jsonl"

Record = dict[str, Any]


def read(folder: Path) -> Record | None:
    """A cell's record; None if it is neither done nor failed."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.exists() else None


def step_is_done(folder: Path, step: Step) -> bool:
    return _end(folder, step).exists()


def end_step(folder: Path, step: Step, seconds: float) -> None:
    if not step_is_done(folder, step):
        files.write_json(_end(folder, step), {"seconds": seconds})


def fail(folder: Path, error: str) -> None:
    """Records that a cell has failed, and why."""
    files.write_json(folder / RECORD, {"status": "failed", "error": error, **_numbers(folder, ())})


def finish(folder: Path, steps: Sequence[Step], keep_weights: bool) -> None:
    """Removes a cell's checkpoints and records its results."""
    record = {"status": "done", "error": None, **_numbers(folder, steps)}
    for step in steps:
        if step.command == "train":
            _drop(folder / step.name, keep_weights)
    files.write_json(folder / RECORD, record)


def collect(experiment: Experiment, cells: Sequence[Cell]) -> tuple[list[Record], list[Record]]:
    """The records of the cells that have one, by the cells' names, and beside them what no two
    runs have in common: {"cell", "seconds"}.

    Returns the same for the same cells, in whatever order and after however many kills they were
    run; so do the files.
    """
    names = experiment.short_names()
    table, timings = [], []
    for cell in sorted(cells, key=lambda cell: cell.name):
        record = read(experiment.cell_folder(cell))
        if record is None:
            continue
        timings.append({"cell": cell.name, "seconds": record.pop("seconds")})
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
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table


def short_name(task: str, names: Mapping[str, str]) -> str:
    """A task's name in tables; of a variant with sentinels that of the task itself."""
    plain = task.removesuffix("_sentinel")
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
    """What a record says of all its results, as the cell's first step has it."""
    if step.command != "train":
        return json.loads((folder / "parameters.json").read_text())
    last = card.read(folder / "trained_last.safetensors")
    steps = last.steps if last else None
    return {**dataclasses.asdict(Result.read(folder)), "steps": steps}


def _results(folder: Path, step: Step) -> Iterator[Record]:
    """{"task", "split", "row", "metrics", "run"}: the metrics of the first evaluation method."""
    if step.command == "train":
        measured = Result.read(folder)
        for task, rows in measured.of_first_method().items():
            for row in ROWS:
                yield {
                    "task": task,
                    "split": measured.splits[task],
                    "row": row,
                    "metrics": rows[row],
                    "run": step.name,
                }
        return
    row = "ensemble" if step.command == "ensemble" else "trained"
    ending = "-metrics.json"
    for path in sorted(folder.glob(f"*{ending}")):
        task, _, split = path.name.removesuffix(ending).rpartition("-")
        metrics = result_file.of_first_method(json.loads(path.read_text()))
        yield {"task": task, "split": split, "row": row, "metrics": metrics, "run": step.name}


def _end(folder: Path, step: Step) -> Path:
    """The file that is there when a step has ended: the last one that `train` writes; of the other
    commands one of ours.
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
