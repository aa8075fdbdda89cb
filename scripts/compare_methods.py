"""Tuning methods of one backbone on labelled sets: mean and deviation over seeds, size on disk.

Each data set is a folder below --data. Seeds come first, so that a run that is stopped has all
cells of the seeds before; it goes on with what is missing below --output, and prints a Markdown
table of what is there.

  python scripts/compare_methods.py --data=FOLDER --output=runs/methods
"""

import json
import statistics
import subprocess
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
    "model_tuning",
)
SENTIMENT = ("negative", "positive")
QUESTIONS = ("abbreviation", "description", "entity", "human", "location", "number")
# Label words of sets that are read as files, with their input length; the others are benchmarks.
FILES: Mapping[str, tuple[Sequence[str], int]] = {
    "sentence_polarity": (SENTIMENT, 48),
    "sst2": (SENTIMENT, 48),
    "trec_qc": (QUESTIONS, 32),
}
BENCHMARKS = ("rte", "boolq")
SPLITS = ("train", "validation", "test")

_DATA = flags.DEFINE_string("data", None, "Folder of the data sets.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs.", required=True)
_TASKS = flags.DEFINE_list("tasks", ["sst2", "trec_qc", *BENCHMARKS], "Data sets.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "Gin files of configs/methods.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each cell.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of a run.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.")
_JSON = flags.DEFINE_string("json", None, "File to write all scores to.")

Cell = tuple[int, str, str]  # seed, task, method


def bindings(task: str) -> dict[str, Any]:
    """The macros that say where a data set is, and its lengths."""
    if task in BENCHMARKS:
        return {
            "MIXTURE_OR_TASK_NAME": f"taskless_super_glue_{task}_v102_examples",
            "BENCHMARKS_DIR": _DATA.value,
            "TASK_FEATURE_LENGTHS": {"inputs": 128, "targets": 8},
        }
    labels, length = FILES[task]
    files = {split: next(Path(_DATA.value, task).glob(f"{split}.jsonl*")) for split in SPLITS}
    return {
        **{f"{split.upper()}_FILE": str(path) for split, path in files.items()},
        "CLASS_LABELS": labels,
        "TASK_FEATURE_LENGTHS": {"inputs": length, "targets": 8},
    }


def folder(cell: Cell) -> Path:
    seed, task, method = cell
    return Path(_OUTPUT.value) / f"{task}-{method}-{seed}"


def run(cell: Cell) -> None:
    """Trains a cell, if it is not there."""
    seed, task, method = cell
    if (folder(cell) / "result.json").exists():
        return
    settings = bindings(task) | {
        "MODEL_DIR": str(folder(cell)),
        "BATCHING": "bucketed",
        "TRAIN_STEPS": _STEPS.value,
        "EVAL_PERIOD": _STEPS.value // 2,
        "EVAL_BATCH_SIZE": 64,
        "RANDOM_SEED": seed,
    }
    if method in ("prompt_tuning", "multitask_prompt"):
        settings["PROMPT_LENGTH"] = 20
    command = [sys.executable, "-m", "prompt_tuning.train"]
    for name in ("models/demo.gin", f"methods/{method}.gin", "runs/finetune.gin"):
        command.append(f"--gin_file={name}")
    command += [f"--gin.{name}={value!r}" for name, value in settings.items()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder(cell)}: {done.stderr}")


def row(method: str) -> dict[str, Any]:
    """What the table says of a method, from the cells that are there."""
    scores: dict[str, list[float]] = {}
    about: dict[str, Any] = {"method": method, "scores": scores}
    for task in _TASKS.value:
        cells = [folder((seed, task, method)) for seed in range(_SEEDS.value)]
        there = [path for path in cells if (path / "result.json").exists()]
        results = [json.loads((path / "result.json").read_text()) for path in there]
        scores[task] = [100 * result["prompt_accuracy"] for result in results]
        for path, result in zip(there, results, strict=True):
            about["trained_parameters"] = result["trained_parameters"]
            about["bytes"] = (path / "trained_best.safetensors").stat().st_size
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
    cells = [(s, t, m) for s in range(_SEEDS.value) for t in _TASKS.value for m in _METHODS.value]
    with ThreadPoolExecutor(_JOBS.value) as pool:
        list(pool.map(run, cells))
    rows = [row(method) for method in _METHODS.value]
    print(table(rows))
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
