"""Pre-trains the ladder of small backbones and writes each stage's weights (docs/backbone.md).

A size that was stopped goes on where it was, and a stage that is written is left alone:

  python scripts/make_ladder.py --corpus=FOLDER --supervised=FOLDER --output=runs/ladder
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

SIZES = ("ladder_xs", "ladder_s", "ladder_m", "ladder_l")
ADAPTED = {"span": 0.0, "lm10": 0.1, "lm50": 0.5, "lm100": 1.0}  # share of the adaptation's steps

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of the corpus.", required=True)
_SUPERVISED = flags.DEFINE_string("supervised", None, "Folder of labelled sets.", required=True)
_OUTPUT = flags.DEFINE_string("output", "runs/ladder", "Folder of runs and weights.")
_SIZES = flags.DEFINE_list("sizes", list(SIZES), "Which to make, in turn.")
_STEPS = flags.DEFINE_integer("steps", 1_200, "Steps before LM adaptation.")
_ADAPTATION = flags.DEFINE_integer("adaptation_steps", 400, "Steps of LM adaptation.")


def make(size: str, stage: str) -> None:
    """Trains `size` up to the end of `stage`, and writes its weights."""
    output = Path(_OUTPUT.value, size, f"{stage}.safetensors")
    if output.exists():
        return
    run = Path(_OUTPUT.value, size, "run")
    steps = _STEPS.value + round(ADAPTED[stage] * _ADAPTATION.value)
    settings = {
        "MODEL_DIR": run,
        "CORPUS": _CORPUS.value,
        "SUPERVISED": _SUPERVISED.value,
        "TRAIN_STEPS": steps,
        "ADAPTATION_START": _STEPS.value,
        "INITIAL_CHECKPOINT_PATH": "",
    }
    command = [sys.executable, "-m", "prompt_tuning.pretrain"]
    command += [f"--gin_file={file}.gin" for file in (f"models/{size}", "runs/ladder")]
    command += [f"--gin.{name}={value}" for name, value in settings.items()]
    subprocess.run(command, check=True)
    export = [sys.executable, Path(__file__).with_name("export_backbone.py")]
    subprocess.run([*export, f"--model_dir={run}", f"--output={output}"], check=True)


def main(argv: Sequence[str]) -> None:
    del argv
    for size in _SIZES.value:
        for stage in ADAPTED:
            make(size, stage)


if __name__ == "__main__":
    app.run(main)
