"""Experiments that run: what is killed resumes, what fails stays failed, nothing runs twice."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stub_cells

from prompt_tuning.checkpoint import backbone
from prompt_tuning.experiments import records
from prompt_tuning.methods import ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runtime.lock import only_process
from prompt_tuning.t5.config import T5Config
from prompt_tuning.testing import assert_mistake, random_leaves, run_command

TESTS = Path(__file__).parents[1]

# A layer each, on rows of process_run.py: neither TensorFlow nor SeqIO is loaded.
RUN = """
from __gin__ import dynamic_registration
import process_run
from prompt_tuning import methods
from prompt_tuning.runs import train
from prompt_tuning.t5 import config
from prompt_tuning.training import loop
include 'common/layout.gin'

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
    """Holds run.gin, grid.gin and a backbone."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "run.gin").write_text(RUN)
    (folder / "grid.gin").write_text(GRID)
    config = T5Config(256, 16, 2, 8, 32, 1, 1)
    leaves = random_leaves(ParamSplit.of(config, ModelTuning()).shapes)
    backbone.save(folder / "tiny.safetensors", leaves, "float32")
    return folder


@pytest.fixture(scope="module")
def words(folder) -> Callable[..., list[str]]:
    """The words of a command of `experiments` whose output goes to a folder."""

    def words(command: str, output: str, *more: str) -> list[str]:
        macros = [f"--gin.OUTPUT={output}", f"--gin.BACKBONE={folder / 'tiny.safetensors'}"]
        return [command, "grid.gin", *macros, *more]

    return words


@pytest.fixture(scope="module")
def start(folder, words) -> Callable[..., stub_cells.Command]:
    """Starts a command with stub cells."""

    def start(*arguments: str, hook: stub_cells.Hook | None = None) -> stub_cells.Command:
        return stub_cells.Command(folder, words(*arguments), hook)

    return start


@pytest.fixture
def call(folder, words, monkeypatch) -> Callable:
    """Runs a command in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(TESTS)
    return lambda *arguments: run_command("prompt_tuning.experiments", *words(*arguments))


def logs(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("cells/*/log.txt"))]


@pytest.fixture(scope="module")
def whole(folder, start) -> bytes:
    """The table of a run that nothing disturbs."""
    status, out, err = start("run", "whole", "--workers=2").result()
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("4 of 4 done")
    status, out, err = start("table", "whole", "--json=whole.json").result()
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "| length | method | remainders | trained parameters |"
    return (folder / "whole/toy/table.jsonl").read_bytes()


def test_records(whole, folder):
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["cell"] for line in lines] == ["0-2", "0-3", "1-2", "1-3"]
    for line in lines:
        seed, length = (int(line["axes"][axis]) for axis in ("seed", "length"))
        cell = (folder / "whole/toy" / line["config"]).parent
        assert line["config"].endswith("/train/config.gin")
        assert f"'PROMPT_LENGTH': '{length}'" in (cell / "config.gin").read_text()
        assert not list(cell.glob("checkpoint_*")) and not (cell / "best").exists()
        assert [(result["row"], result["metrics"]) for result in line["results"]] == [
            *((row, {"accuracy": value}) for row, value in stub_cells.BASELINES.items()),
            ("trained", {"accuracy": stub_cells.accuracy(seed, length)}),
            ("validation", {"accuracy": stub_cells.accuracy(seed, length)}),
        ]
        assert (line["status"], line["error"], line["best_step"]) == ("done", None, 2)
        assert line["trained_parameters"] == stub_cells.D_MODEL * length
        assert "seconds" not in line
    timings = (folder / "whole/toy/timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"] for line in timings] == [line["cell"] for line in lines]
    assert all(json.loads(line)["seconds"] == 0.5 for line in timings)


def test_killed_at_every_moment(whole, folder, start):
    """The table is that of an undisturbed run, and no cell trains to its end twice, wherever all
    processes are killed: at every step, and before and after each file gets its name.
    """
    output, kills = folder / "killed", 0
    arguments = ("run", "killed", "--gin.SEEDS=(0,)")
    while (result := start(*arguments, hook=stub_cells.kill_once).result())[0]:
        assert result[0] == -9, result
        kills += 1
    assert kills == 2 * (2 + 2 * 3)  # two cells of two steps and three files
    assert start("run", "killed").result()[0] == 0
    assert start("table", "killed").result()[0] == 0
    assert (output / "toy/table.jsonl").read_bytes() == whole
    assert len(logs(output)) == 4


def test_cells_that_another_runner_holds(folder, start, words):
    """One is left without a record, and runs; the other one is done when it is released."""
    listed = start("run", "held", "--gin.SEEDS=(0,)", "--dry_run").result()[1].splitlines()
    first, second = (folder / "held/cells" / line.split()[0] for line in listed[:6:3])
    record = {"status": "done", "error": None, "seconds": 0, "results": [], "config": None}
    with only_process(second):
        with only_process(first):
            command = start("run", "held", "--gin.SEEDS=(0,)")
            lines = command.lines()
            waiting = {next(lines) for _ in range(3)}
        (second / records.RECORD).write_text(json.dumps(record))
    assert waiting >= {f"0-{length}: held by another process; waiting\n" for length in (2, 3)}
    status, out, err = command.result()
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("2 of 2 done")
    assert (first / "train/result.json").exists() and not (second / "train").exists()


def test_sigterm(folder, start):
    """The step saves and ends, then the cell, then the runner; nothing is recorded."""
    status, _, err = start("run", "stopped", hook=stub_cells.terminate).result()
    assert (status, err) == (75, "stopped: run the same command again to resume\n")
    [log] = logs(folder / "stopped")
    assert log == "stopped\n"
    assert not list((folder / "stopped").glob("cells/*/record.json"))
    assert start("run", "stopped", "--gin.SEEDS=(0,)").result()[0] == 0
    assert [log.count(stub_cells.FINISHED) for log in logs(folder / "stopped")] == [1, 1]


def test_a_cell_that_fails(folder, start):
    backbone_of_later = folder / "later.safetensors"
    later = (f"--gin.BACKBONE={backbone_of_later}", "--gin.SEEDS=(0,)")
    status, out, err = start("run", "failed", *later).result()
    assert status == 1
    assert err == "error: 2 cells failed; --retry_failed runs failed cells again\n"
    assert out.splitlines()[-1].endswith("0 of 2 done, 2 failed")
    status, out, _ = start("table", "failed", *later).result()
    assert status == 0 and "2 cells: 0 done, 0 missing, 2 failed" in out
    lines = (folder / "failed/toy/table.jsonl").read_text().splitlines()
    errors = {json.loads(line)["error"] for line in lines}
    assert errors == {f"train: INITIAL_CHECKPOINT_PATH = {str(backbone_of_later)!r}: no such file"}
    before = logs(folder / "failed")
    backbone_of_later.touch()
    assert start("run", "failed", *later).result()[0] == 1
    assert logs(folder / "failed") == before
    status, out, err = start("run", "failed", *later, "--retry_failed").result()
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("2 of 2 done")


def test_a_file_that_has_changed_since_a_cell_read_it(folder, start, call):
    weights = folder / "replaced.safetensors"
    of_file = (f"--gin.BACKBONE={weights}", "--gin.SEEDS=(0,)")
    before = (folder / "tiny.safetensors").read_bytes()
    weights.write_bytes(before)
    assert start("run", "changed", *of_file).result()[::2] == (0, "")
    wrote = logs(folder / "changed")
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    more = ("--gin.SEEDS=(0, 1)", "--retry_failed")  # further cells, which do not start
    result = call("run", "changed", of_file[0], *more)
    assert_mistake(result, f"{weights}: has changed since 2 cells of toy read it; put it back, ")
    assert "such as changed/cells/" in result.err and logs(folder / "changed") == wrote
    record = next((folder / "changed").glob("cells/*/record.json"))
    content = record.read_bytes()
    record.unlink()  # as if a step were left to do
    assert_mistake(call("run", "changed", of_file[0], *more), "has changed since 2 cells of toy")
    record.write_bytes(content)
    status, out, err = start("table", "changed", *of_file).result()
    assert (status, err.count("\n")) == (0, 1) and "2 cells: 2 done" in out
    assert err.startswith(f"warning: {weights}: has changed since 2 cells")
    for put in (
        lambda: weights.write_bytes(before),
        weights.unlink,
    ):  # what is gone is not compared
        put()
        assert start("run", "changed", *of_file).result()[::2] == (0, "")
    # An earlier version did not record what a cell read.
    weights.write_bytes(b"")
    for path in (folder / "changed").glob("cells/*/inputs.json"):
        path.unlink()
    assert start("run", "changed", *of_file).result()[::2] == (0, "")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "--gin.TRAIN_STEP=3"), "there is no setting TRAIN_STEP"),
        (("run", "--gin.SEEDS=(0, '0')"), "toy: axis 'seed': has the value '0' twice"),
        (
            ("table", "--gin.grid.Experiment.exclude=({'length': '4'},)"),
            "toy: exclude: axis 'length' has no value '4'; choose from 2, 3",
        ),
        (("run", "--cell_index=4", "--cell_count=4"), "--cell_index: part 4 of 4"),
        (("run", "--dry_run", "--gin.TRAIN_STEPS=a"), "TRAIN_STEPS = 'a': must be a whole"),
        (("run", "--gin_file=a.gin"), "--gin_file: is not for experiments"),
        (("run", "--gin.OUTPUT=run.gin"), "OUTPUT = 'run.gin': cannot be made a folder"),
        (("table", "--gin.OUTPUT=run.gin"), "OUTPUT = 'run.gin': cannot be made a folder"),
        (("plot",), "no cell is done: nothing to draw"),
        (("walk",), "walk grid.gin: expected run, table, plot and one gin file"),
    ],
)
def test_mistakes(arguments, part, call, folder):
    command, *flags = arguments
    assert_mistake(call(command, "absent", *flags), part)
    assert not (folder / "absent").exists()


def test_dry_run_of_a_part(call, folder):
    status, out, err = call("run", "absent", "--dry_run", "--cell_index=1", "--cell_count=2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "part 1 of 2, by --cell_index"
    assert [line.split()[1] for line in lines[1:7:3]] == ["0-3", "1-3"]
    assert lines[2].startswith("  train: trained 1 leaves 48 parameters ")
    digest = lines[1].split()[0]
    assert lines[3].startswith("    python -m prompt_tuning.train --gin_file=run.gin ")
    assert f" --gin.MODEL_DIR=absent/cells/{digest}/train " in lines[3]
    assert lines[7] == "toy: 2 cells"
    assert not (folder / "absent").exists()


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ("demo_question", "MIXTURE_OR_TASK_NAME = 'demo_question': no such task"),
        ("sst2", "cell 0-demo-sst2-prompt_tuning, step train: DATA_DIR = "),
    ],
)
def test_dry_run_checks_the_data(task, part, tmp_path, monkeypatch):
    """After all cells are listed."""
    monkeypatch.chdir(tmp_path)
    method = {"steps": ("train",), "gin_file": "methods/prompt_tuning.gin"}
    axes = {"seed": [0], "size": ["demo"], "task": [task], "method": {"prompt_tuning": method}}
    (tmp_path / "one.gin").write_text(
        f"include 'experiments/methods.gin'\ngrid.Experiment.axes = {axes}\n"
    )
    words = ("run", "one.gin", "--dry_run", "--gin.OUTPUT=absent", "--gin.DATA_DIR=data")
    result = run_command("prompt_tuning.experiments", *words)
    assert_mistake(result, part)
    assert result.out.splitlines()[-1] == "methods: 1 cell"


def test_dry_run_checks_the_backbone(call):
    assert_mistake(
        call("run", "absent", "--dry_run", "--gin.BACKBONE=nowhere"),
        "cell 0-2, step train: INITIAL_CHECKPOINT_PATH = 'nowhere': no such file or folder",
    )


def process(folder: Path, words: list[str]) -> subprocess.CompletedProcess:
    """`python -m prompt_tuning.experiments`, with real cells."""
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "prompt_tuning.experiments", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_in_a_process_of_its_own(folder, words):
    """With a cell's real process, which ends at its first mistake."""
    one = ("--gin.SEEDS=(0,)", "--gin.BACKBONE=nowhere", "--cell_index=0", "--cell_count=2")
    done = process(folder, words("run", "alone", *one))
    assert (done.returncode, done.stderr) == (
        1,
        "error: 1 cell failed; --retry_failed runs failed cells again\n",
    )
    assert "(train: " in done.stdout and "nowhere" in done.stdout


@pytest.mark.slow
def test_real_cells(folder, words):
    """Trains four tiny prompts, two at a time."""
    done = process(folder, words("run", "real", "--workers=2"))
    assert (done.returncode, done.stderr) == (0, "")
    done = process(folder, words("table", "real", "--json=real.json"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = (folder / "real/toy/table.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        length = int(line["axes"]["length"])
        cell = (folder / "real/toy" / line["config"]).parent
        assert f"PROMPT_LENGTH = {length}\n" in (cell / "config.gin").read_text()
        assert np.load(cell / "prompt_best.npy").shape == (length, 16)
        assert not list(cell.glob("checkpoint_*")) and not (cell / "best").exists()
        result = json.loads((cell / "result.json").read_text())
        rows = {actual["row"]: actual["metrics"] for actual in line["results"]}
        assert list(rows) == ["majority", "frozen", "trained", "validation"]
        assert rows["trained"] == {"accuracy": result["prompt_accuracy"]}
        assert (line["status"], line["error"], line["steps"]) == ("done", None, 2)
        assert line["trained_parameters"] == 16 * length
        assert line["best_step"] == result["best_step"]
    assert len(lines) == 4
