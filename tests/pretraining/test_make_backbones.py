"""The command that makes the backbones: what it runs, and that a kill changes no byte."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gin
import pytest
from absl import flags
from absl.testing import flagsaver

from prompt_tuning.cli import gin_parsing
from prompt_tuning.pretraining.mixture import Mixture, Phase
from prompt_tuning.runs.pretrain import pretrain

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_backbones.py"
# In place of the two programs that it runs: notes what it was asked for, and writes the output.
STAND_IN = """
import os, sys
from pathlib import Path
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
output = [word.split("=", 1)[1] for word in sys.argv if word.startswith("--output=")]
if output and "--model_dir" in " ".join(sys.argv):
    Path(output[0]).parent.mkdir(parents=True, exist_ok=True)
    Path(output[0]).touch()
sys.exit("--gin.TRAIN_STEPS=13" in sys.argv)
"""
PROGRAM = """
import runpy, subprocess, sys
script, stand_in = sys.argv[1:3]
real = subprocess.run
stand = [sys.executable, "-c", stand_in]
subprocess.run = lambda words, **more: real([*stand, *map(str, words)], **more)
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Runs the script with stand-ins; returns the exit status and the words of each call."""
    log = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(log))

    def run(*flags: str) -> tuple[int, list[str]]:
        log.write_text("")
        words = ["--corpus=C", "--labelled=L", f"--output={tmp_path / 'out'}", *flags]
        command = [sys.executable, "-c", PROGRAM, str(SCRIPT), STAND_IN, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        return done.returncode, log.read_text().splitlines()

    return run


def phases_of(words: str) -> tuple[Phase, ...]:
    """The phases that a command trains with."""
    flagged = [flag for flag in gin_parsing.expand_gin_flags(words.split()) if "--gin_" in flag]
    named = [flag.removeprefix("--").partition("=")[::2] for flag in flagged]
    values = {name: [value for key, value in named if key == name] for name, _ in named}
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        gin_parsing.parse(pretrain, values["gin_file"], values["gin_bindings"])
    phases = gin.get_bindings(Mixture)["phases"]
    gin.clear_config()
    return phases


def test_the_table_then_each_size(calls, tmp_path):
    status, made = calls("--sizes=ladder_xs,demo", "--steps=300", "--held_out=E")
    assert status == 0 and len(made) == 5
    table, xs, export, demo, _ = made
    assert "make_table.py --corpus=C --labelled=L --held_out=E" in table
    assert f"--output={tmp_path}/out/table" in table
    assert "models/ladder_xs.gin" in xs and f"--gin.TABLE={tmp_path}/out/table" in xs
    assert "--gin.TRAIN_STEPS=300" in xs and "--gin.WARMUP_STEPS=30" in xs
    assert f"--output={tmp_path}/out/ladder_xs/final.safetensors" in export
    assert "models/demo.gin" in demo


def test_what_is_written_is_left_alone(calls):
    first = calls("--sizes=ladder_xs", "--table=T")
    assert len(first[1]) == 2
    assert calls("--sizes=ladder_xs", "--table=T") == (0, [])


def test_a_run_that_fails_ends_the_command(calls):
    status, made = calls("--sizes=ladder_xs,demo", "--table=T", "--steps=13")
    assert status == 1 and len(made) == 1


def test_weights_to_start_from(calls):
    _, made = calls("--sizes=ladder_s", "--table=T", "--start=W")
    assert "--gin.INITIAL_CHECKPOINT_PATH=W/ladder_s/final.safetensors" in made[0]


def test_stages_differ_in_steps_alone(calls):
    _, made = calls("--sizes=", "--table=T", "--stages", "--steps=600")
    trained = [words for words in made if "prompt_tuning.pretrain" in words]
    steps = [words.split("--gin.TRAIN_STEPS=")[1].split()[0] for words in trained]
    assert steps == ["200", "240", "400", "600"] * 2
    others = {
        words.replace(f"TRAIN_STEPS={n}", "") for words, n in zip(trained, steps, strict=True)
    }
    assert len(others) == 2  # one for each size
    assert all("--gin.first/mixture.Phase.choices=0.0" in words for words in trained)
    phases = [phases_of(words) for words in trained]
    assert phases == [phases[0]] * 8  # a run that resumes is refused other ones
    assert [phase.until for phase in phases[0]] == [200, 600]


@pytest.mark.slow
def test_a_kill_changes_no_byte(tmp_path, corpus, labelled, table):
    environment = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "c")}

    def command(output: str) -> list[str]:
        flags = {"corpus": corpus, "labelled": labelled, "table": table}
        words = [f"--{name}={value}" for name, value in flags.items()]
        words += ["--sizes=ladder_xs", "--steps=12", f"--output={tmp_path / output}"]
        return [sys.executable, str(SCRIPT), *words]

    subprocess.run(command("whole"), check=True, env=environment, timeout=900)
    killed = subprocess.Popen(command("killed"), env=environment, start_new_session=True)
    run = tmp_path / "killed" / "ladder_xs" / "run"
    while not run.exists() and killed.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    weights = [tmp_path / name / "ladder_xs" / "final.safetensors" for name in ("whole", "killed")]
    assert not weights[1].exists()
    subprocess.run(command("killed"), check=True, env=environment, timeout=900)
    assert weights[0].read_bytes() == weights[1].read_bytes()
