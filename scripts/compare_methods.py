r"""Tuning methods of one backbone on labelled sets: mean and deviation over seeds, size on disk.

Each data set is an embedded one (`demo_questions`) or a folder below --data. Seeds come first, so
that a run that is stopped has all cells of the seeds before; it goes on with what is missing below
--output, and prints a Markdown table of what is there. A method may carry a learning rate, and
validation scores are what to choose one by:

  python scripts/compare_methods.py --data=FOLDER --output=runs/methods
  python scripts/compare_methods.py --tasks=demo_questions --methods=lora:0.01,lora:0.1 \
    --split=validation --seeds=1 --output=runs/sweep
"""

import json
import multiprocessing
import os
import runpy
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import app, flags

METHODS = (
    "prompt_tuning",
    "p_tuning",
    "prefix_tuning",
    "deep_prompt",
    "warp",
    "lora",
    "adapter",
    "ia3",
    "bitfit",
    "multitask_prompt",
    "prompt_design",
    "model_tuning",
)
SENTIMENT = ("negative", "positive")
QUESTIONS = ("abbreviation", "description", "entity", "human", "location", "number")
# Label words of sets that are read as files, with their input length; the others are benchmarks.
FILES: Mapping[str, Sequence[str]] = {
    "sentence_polarity": SENTIMENT,
    "sst2": SENTIMENT,
    "trec_qc": QUESTIONS,
}
BENCHMARKS = ("rte", "boolq")
LENGTHS = {"trec_qc": 32, "rte": 128, "boolq": 128}  # of the input; the others': 48
SPLITS = ("train", "validation", "test")

_DATA = flags.DEFINE_string("data", None, "Folder of the data sets that are not embedded.")
_OUTPUT = flags.DEFINE_string("output", "runs/methods", "Folder of the runs.")
_TASKS = flags.DEFINE_list("tasks", ["sst2", "trec_qc", *BENCHMARKS], "Data sets.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "NAME or NAME:LEARNING_RATE.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each cell.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of a run.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows of a step.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "Whose scores to print.")
_JSON = flags.DEFINE_string("json", None, "File to write all scores to.")


# Each run is a process that begins with what all of them import.
_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["prompt_tuning.runs.train", "prompt_tuning.data.source"])

Cell = tuple[int, str, str]  # seed, task, method


def bindings(task: str) -> dict[str, Any]:
    """The macros that say where a data set is."""
    if task.startswith("demo_"):
        return {"MIXTURE_OR_TASK_NAME": task}
    if task in BENCHMARKS:
        name = f"taskless_super_glue_{task}_v102_examples"
        return {"MIXTURE_OR_TASK_NAME": name, "BENCHMARKS_DIR": _DATA.value}
    files = {split: next(Path(_DATA.value, task).glob(f"{split}.jsonl*")) for split in SPLITS}
    paths = {f"{split.upper()}_FILE": str(path) for split, path in files.items()}
    return {**paths, "CLASS_LABELS": FILES[task]}


def folder(cell: Cell) -> Path:
    seed, task, method = cell
    return Path(_OUTPUT.value) / f"{task}-{method.replace(':', '-')}-{seed}"


def training(cell: Cell) -> tuple[list[str], dict[str, Any]]:
    """The gin files and macros of a run."""
    seed, task, method = cell
    name, _, rate = method.partition(":")
    settings = {
        "MODEL_DIR": str(folder(cell)),
        "TASK_FEATURE_LENGTHS": {"inputs": LENGTHS.get(task, 48), "targets": 8},
        "BATCHING": "bucketed",
        "TRAIN_STEPS": _STEPS.value,
        "EVAL_PERIOD": _STEPS.value // 2,
        "EVAL_BATCH_SIZE": 64,
        "RANDOM_SEED": seed,
    }
    if rate:
        settings["LEARNING_RATE"] = float(rate)
    if name in ("prompt_tuning", "multitask_prompt"):
        settings["PROMPT_LENGTH"] = 20
    return [f"methods/{name}.gin", "runs/finetune.gin"], settings


def design(cell: Cell) -> tuple[list[str], dict[str, Any]]:
    """The gin files and macros of prompt design: a demonstration of each class, by `eval`."""
    seed, task, _ = cell
    labels = len(QUESTIONS) if FILES.get(task) == QUESTIONS or task == "demo_questions" else 2
    return ["runs/eval.gin", "methods/prompt_design.gin"], {
        "EVAL_OUTPUT_DIR": str(folder(cell)),
        "TASK_FEATURE_LENGTHS": {"inputs": 8 * LENGTHS.get(task, 48), "targets": 8},
        "SPLIT": "validation" if task in BENCHMARKS else _SPLIT.value,
        "DEMONSTRATIONS": labels,
        "DEMONSTRATIONS_SEED": seed,
    }


def run(cell: Cell) -> None:
    """Trains or measures a cell, if it is not there."""
    _, task, method = cell
    if score(cell) is not None:
        return
    designed = method == "prompt_design"
    files, settings = design(cell) if designed else training(cell)
    settings |= {"BATCH_SIZE": _BATCH_SIZE.value} | bindings(task)
    arguments = [f"--gin_file={name}" for name in ("models/demo.gin", *files)]
    arguments += [f"--gin.{name}={value!r}" for name, value in settings.items()]
    log = folder(cell).with_name(f"{folder(cell).name}.log")
    command = "eval" if designed else "train"
    process = _FORK.Process(target=in_process, args=(command, arguments, str(log)))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{folder(cell)}: {log.read_text()}")
    log.unlink()


def in_process(command: str, arguments: Sequence[str], log: str) -> None:
    """Runs `python -m prompt_tuning.COMMAND` in this process, its output in a file."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [command, *arguments]
    runpy.run_module(f"prompt_tuning.{command}", run_name="__main__", alter_sys=False)


def score(cell: Cell) -> float | None:
    """The accuracy in percent; None for a cell that is not there."""
    for path in folder(cell).glob("*-metrics.json"):
        return 100 * json.loads(path.read_text())["rank/accuracy"]
    if (path := folder(cell) / "result.json").exists():
        result = json.loads(path.read_text())
        found = {"test": result["prompt_accuracy"], **result["validation"]}
        return 100 * found["test" if _SPLIT.value == "test" else "rank/accuracy"]
    return None


def row(method: str) -> dict[str, Any]:
    """What the table says of a method, from the cells that are there."""
    scores: dict[str, list[float]] = {}
    about: dict[str, Any] = {"method": method, "scores": scores}
    for task in _TASKS.value:
        cells = [(seed, task, method) for seed in range(_SEEDS.value)]
        scores[task] = [found for cell in cells if (found := score(cell)) is not None]
        for cell in cells:
            if (path := folder(cell) / "result.json").exists():
                result = json.loads(path.read_text())
                about["trained_parameters"] = result["trained_parameters"]
                about["bytes"] = (folder(cell) / "trained_best.safetensors").stat().st_size
                for who in ("majority", "frozen"):
                    about.setdefault(who, {})[task] = 100 * result[f"{who}_accuracy"]
    return about


def shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    tasks = _TASKS.value
    lines = [["method", *tasks, "trained parameters", "bytes on disk"]]
    lines.append(["---", *["---:"] * (len(tasks) + 2)])
    for who in ("majority", "frozen"):
        known = rows[0].get(who, {})
        lines.append([who, *(f"{known[t]:.1f}" if t in known else "-" for t in tasks), "", ""])
    for one in rows:
        counts = [
            f"{one[name]:,}" if name in one else "-" for name in ("trained_parameters", "bytes")
        ]
        lines.append([one["method"], *(shown(one["scores"][task]) for task in tasks), *counts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str]) -> None:
    del argv
    embedded = all(task.startswith("demo_") for task in _TASKS.value)
    if not (_DATA.value or embedded):
        raise app.UsageError(f"--tasks={','.join(_TASKS.value)}: needs --data, their folder")
    cells = [(s, t, m) for s in range(_SEEDS.value) for t in _TASKS.value for m in _METHODS.value]
    with ThreadPoolExecutor(_JOBS.value) as pool:
        list(pool.map(run, cells))
    rows = [row(method) for method in _METHODS.value]
    print(table(rows))
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
