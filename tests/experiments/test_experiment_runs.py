"""Experiments that run: what is killed goes on, what fails stays failed, nothing runs twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prompt_tuning.checkpoint import backbone
from prompt_tuning.methods import ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5.config import T5Config

TESTS = Path(__file__).parents[1]
KILLS = 5
NOTHING = "x"  # an output folder that is not to be made

# A layer each, on rows of process_run.py: neither TensorFlow nor SeqIO is loaded.
RUN = """
from __gin__ import dynamic_registration
import process_run
from prompt_tuning import methods
from prompt_tuning.runs import train
from prompt_tuning.t5 import config
from prompt_tuning.training import loop
include 'runs/layout.gin'

RANDOM_SEED = 0
PROMPT_LENGTH = 4
TRAIN_STEPS = 2
MODEL = @config.T5Config()
config.T5Config:
  vocab_size = 256
  d_model = 16
  num_heads = 2
  head_dim = 8
  d_ff = 32
  num_encoder_layers = 1
  num_decoder_layers = 1
METHOD = @methods.PromptTuning()
methods.PromptTuning:
  length = %PROMPT_LENGTH
  initializer = @methods.Uniform()
train.train:
  model_dir = %MODEL_DIR
  config = %MODEL
  method = %METHOD
  layout = %LAYOUT
  data = @process_run.Rows()
  initial_checkpoint = %INITIAL_CHECKPOINT_PATH
  fit = @loop.Fit()
  eval_batch_size = 8
  seed = %RANDOM_SEED
loop.Fit:
  total_steps = %TRAIN_STEPS
  eval_period = 2
  checkpoint_period = 1
  log_period = 1
  seed = %RANDOM_SEED
process_run.Rows.signals = {}
"""
GRID = """
from __gin__ import dynamic_registration
from prompt_tuning.experiments import grid

OUTPUT = %gin.REQUIRED
BACKBONE = %gin.REQUIRED
TRAIN_STEPS = 2
SEEDS = (0, 1)
grid.Experiment:
  name = 'toy'
  output = %OUTPUT
  steps = {'train': %TRAIN}
  axes = {'seed': %SEEDS, 'length': {'2': {'PROMPT_LENGTH': 2}, '3': {'PROMPT_LENGTH': 3}}}
  variables = {'BACKBONE': %BACKBONE}
TRAIN = {
    'command': 'train',
    'gin_file': 'run.gin',
    'INITIAL_CHECKPOINT_PATH': '$BACKBONE',
    'TRAIN_STEPS': %TRAIN_STEPS,
    'RANDOM_SEED': '$seed',
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With run.gin, grid.gin and a backbone."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "run.gin").write_text(RUN)
    (folder / "grid.gin").write_text(GRID)
    rng = np.random.default_rng(0)
    shapes = ParamSplit.of(T5Config(256, 16, 2, 8, 32, 1, 1), ModelTuning()).shapes
    leaves = {path: rng.normal(0, 0.3, leaf.shape) for path, leaf in sorted(shapes.items())}
    backbone.save(
        folder / "tiny.safetensors",
        {path: leaf.astype(np.float32) for path, leaf in leaves.items()},
        "float32",
    )
    return folder


@pytest.fixture(scope="module")
def start(folder) -> Callable[..., subprocess.Popen]:
    """Starts a command of `experiments` as a process group."""

    def start(command: str, output: str, *arguments: str) -> subprocess.Popen:
        if output != NOTHING and not (folder / output).exists():
            (folder / output).mkdir()  # what XLA compiles is the same for all
            (folder / output / "compiled").symlink_to(folder / "compiled")
        words = [sys.executable, "-m", "prompt_tuning.experiments", command, "grid.gin"]
        macros = [f"--gin.OUTPUT={output}", f"--gin.BACKBONE={folder / 'tiny.safetensors'}"]
        environ = {
            "PYTHONPATH": str(TESTS),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        return subprocess.Popen(
            [*words, *macros, *arguments],
            cwd=folder,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="module")
def call(start) -> Callable[..., tuple[int, str, str]]:
    """The status, output and errors of a command."""

    def call(*words: str) -> tuple[int, str, str]:
        process = start(*words)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return call


def logs(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("cells/*/log.txt"))]


def finished(log: str) -> int:
    """How often a log tells of a training that came to its end."""
    return log.count("The prompt, the learning curve and result.json are in")


@pytest.fixture(scope="module")
def whole(folder, call) -> bytes:
    """The table of a run that nothing disturbed."""
    status, out, err = call("run", "whole", "--workers=2")
    assert (status, err) == (0, ""), err
    assert "4 of 4 done" in out.splitlines()[-1]
    status, out, err = call("table", "whole", "--json=whole.json")
    assert status == 0, err
    assert out.splitlines()[0] == "| length | method | remainders | trained parameters |"
    return (folder / "whole/toy/table.jsonl").read_bytes()


def test_records(whole, folder):
    records = [json.loads(line) for line in whole.splitlines()]
    assert [record["cell"] for record in records] == ["0-2", "0-3", "1-2", "1-3"]
    for record in records:
        length = int(record["axes"]["length"])
        cell = (folder / "whole/toy" / record["config"]).parent
        assert record["config"].endswith("/train/config.gin")
        assert f"PROMPT_LENGTH = {length}\n" in (cell / "config.gin").read_text()
        assert np.load(cell / "prompt_best.npy").shape == (length, 16)
        assert not list(cell.glob("checkpoint_*")) and not (cell / "best").exists()
        result = json.loads((cell / "result.json").read_text())
        rows = {found["row"]: found["metrics"] for found in record["results"]}
        assert list(rows) == ["majority", "frozen", "trained"]
        assert rows["trained"] == {"accuracy": result["prompt_accuracy"]}
        assert (record["status"], record["error"], record["steps"]) == ("done", None, 2)
        assert record["trained_parameters"] == 16 * length
        assert record["best_step"] == result["best_step"]
        assert "seconds" not in record
    timings = (folder / "whole/toy/timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"] for line in timings] == [r["cell"] for r in records]
    assert all(json.loads(line)["seconds"] > 0 for line in timings)
    printed = json.loads((folder / "whole.json").read_text())["rows"]
    scores = [r["results"][2]["metrics"]["accuracy"] for r in records if r["axes"]["length"] == "3"]
    [three] = [row for row in printed if row["labels"]["length"] == "3"]
    assert three["scores"]["remainders"]["accuracy"] == {
        "mean": pytest.approx(100 * np.mean(scores)),
        "sd": pytest.approx(100 * np.std(scores, ddof=1)),
        "n": 2,
    }


def test_killed_at_random_moments(whole, folder, start, call):
    moments = random.Random(1)
    output = folder / "killed"
    for _ in range(KILLS):
        process = start("run", "killed")
        while not logs(output) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(moments.uniform(1, 5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    status, _, err = call("run", "killed")
    assert (status, err) == (0, "")
    assert call("table", "killed")[0] == 0
    assert (output / "toy/table.jsonl").read_bytes() == whole
    assert max(finished(log) for log in logs(output)) == 1


def test_two_at_once_run_no_cell_twice(folder, start):
    processes = [start("run", "twice", "--gin.SEEDS=(0,)") for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert [finished(log) for log in logs(folder / "twice")] == [1, 1]


def test_sigterm(folder, start, call):
    process = start("run", "stopped", "--gin.TRAIN_STEPS=100000")
    while not list((folder / "stopped").glob("cells/*/train/checkpoint_*")):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert err == "stopped: the same command goes on with what is missing\n"
    assert not list((folder / "stopped").glob("cells/*/record.json"))
    [log] = logs(folder / "stopped")
    assert log.endswith("stopped: the same command goes on from the newest checkpoint\n")


def test_a_cell_that_fails(folder, call):
    backbone_of_later = folder / "later.safetensors"
    later = (f"--gin.BACKBONE={backbone_of_later}", "--gin.SEEDS=(0,)")
    status, out, err = call("run", "failed", *later)
    assert status == 1
    assert err == "error: 2 cells failed; --retry_failed runs them again\n"
    assert out.splitlines()[-1].endswith("0 of 2 done, 2 failed")
    status, out, _ = call("table", "failed", *later)
    assert status == 0 and "2 cells: 0 done, 0 missing, 2 failed" in out
    records = (folder / "failed/toy/table.jsonl").read_text().splitlines()
    errors = {json.loads(line)["error"] for line in records}
    assert len(errors) == 1 and str(backbone_of_later) in errors.pop()
    before = logs(folder / "failed")
    backbone_of_later.write_bytes((folder / "tiny.safetensors").read_bytes())
    assert call("run", "failed", *later)[0] == 1
    assert logs(folder / "failed") == before
    status, out, err = call("run", "failed", *later, "--retry_failed")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("2 of 2 done")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", NOTHING, "--gin.TRAIN_STEP=3"), "there is no setting TRAIN_STEP"),
        (("run", NOTHING, "--cell_index=4", "--cell_count=4"), "--cell_index: part 4 of 4"),
        (
            ("run", NOTHING, "--dry_run", "--gin.TRAIN_STEPS=a"),
            "TRAIN_STEPS = 'a': must be a whole",
        ),
        (("run", NOTHING, "--gin_file=a.gin"), "--gin_file: not for experiments"),
        (("run", "run.gin"), "OUTPUT = 'run.gin': cannot be made a folder (File exists)"),
        (("table", "run.gin"), "OUTPUT = 'run.gin': cannot be made a folder (File exists)"),
        (("plot", NOTHING), "no cell is done: nothing to draw"),
        (("walk", NOTHING), "walk grid.gin: say run, table, plot and one gin file"),
    ],
)
def test_mistakes(arguments, said, call, folder):
    status, _, err = call(*arguments)
    assert status == 2
    assert err.startswith("error: ") and said in err and err.count("\n") == 1
    assert not (folder / NOTHING).exists()


def test_dry_run_of_a_part(call, folder):
    status, out, err = call("run", NOTHING, "--dry_run", "--cell_index=1", "--cell_count=2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "part 1 of 2, by --cell_index"
    assert [line.split()[1] for line in lines[1:7:3]] == ["0-3", "1-3"]
    assert lines[2].startswith("  train: trained 1 leaves 48 parameters ")
    digest = lines[1].split()[0]
    assert lines[3].startswith("    python -m prompt_tuning.train --gin_file=run.gin ")
    assert f" --gin.MODEL_DIR=x/cells/{digest}/train " in lines[3]
    assert lines[7] == "toy: 2 cells"
    assert not (folder / NOTHING).exists()
