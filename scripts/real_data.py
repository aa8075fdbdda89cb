"""Prompt tuning and model tuning of one backbone on labelled sets: mean and deviation over seeds.

Each data set is a folder with train, validation and (or) test `.jsonl[.xz]` files of {"text",
"label"}, the label an index. Runs what is missing below --output and prints a Markdown table.

  python scripts/real_data.py --data=FOLDER --output=runs/real_data
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

_DATA = flags.DEFINE_string("data", None, "Folder of the data sets.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each cell.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of a run.")

LABELS = {
    "sentence_polarity": ("negative", "positive"),
    "trec_qc": ("abbreviation", "description", "entity", "human", "location", "number"),
    "sst2": ("negative", "positive"),
}
INPUT_LENGTH = {"sentence_polarity": 48, "trec_qc": 32, "sst2": 48}
METHODS = ("prompt_tuning", "model_tuning")
SPLITS = ("train", "validation", "test")


def run(task: str, method: str, seed: int) -> dict:
    """The result of one cell; trains it if it is not there."""
    folder = Path(_OUTPUT.value) / f"{task}-{method}-{seed}"
    result = folder / "result.json"
    if not result.exists():
        files = {split: next(Path(_DATA.value, task).glob(f"{split}.jsonl*")) for split in SPLITS}
        bindings = {
            "MODEL_DIR": str(folder),
            "TRAIN_FILE": str(files["train"]),
            "VALIDATION_FILE": str(files["validation"]),
            "TEST_FILE": str(files["test"]),
            "CLASS_LABELS": LABELS[task],
            "TASK_FEATURE_LENGTHS": {"inputs": INPUT_LENGTH[task], "targets": 8},
            "TRAIN_STEPS": _STEPS.value,
            "EVAL_PERIOD": _STEPS.value // 2,
            "EVAL_BATCH_SIZE": 64,
            "RANDOM_SEED": seed,
        }
        if method == "prompt_tuning":
            bindings["PROMPT_LENGTH"] = 20
        files_first = ("models/demo.gin", "runs/finetune.gin", f"methods/{method}.gin")
        command = [sys.executable, "-m", "prompt_tuning.train"]
        command += [f"--gin_file={name}" for name in files_first]
        command += [f"--gin.{name}={value!r}" for name, value in bindings.items()]
        subprocess.run(command, check=True)
    return json.loads(result.read_text())


def main(argv: Sequence[str]) -> None:
    del argv
    print("| task | majority | frozen, no prompt | " + " | ".join(METHODS) + " |")
    print("|---|---|---|" + "---|" * len(METHODS))
    for task in LABELS:
        cells = {m: [run(task, m, seed) for seed in range(_SEEDS.value)] for m in METHODS}
        first = cells[METHODS[0]][0]
        row = [task, f"{first['majority_accuracy']:.1%}", f"{first['frozen_accuracy']:.1%}"]
        for results in cells.values():
            scores = [100 * result["prompt_accuracy"] for result in results]
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            row.append(f"{statistics.mean(scores):.1f} ± {spread:.1f} %")
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
