"""The launchers of scripts/, with stand-ins for what starts machines."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompt_tuning.runtime import distributed
from prompt_tuning.testing import run_command

SCRIPTS = Path(__file__).parents[1] / "scripts"
TRAIN = (
    *("python", "-m", "prompt_tuning.train", "--gin_file=runs/demo.gin"),
    *("--gin.CLASS_LABELS=['not so', \"so\"]", "--gin.MODEL_DIR=gs://bucket/run"),
)
TPU = ("--name=mine", "--zone=us-central2-b")
MACHINES = {
    "tpu_vm": ("tpu_vm", *TPU, "--type=v4-8", "--version=tpu-ubuntu2204-base"),
    "tpu_vm, there": ("tpu_vm", *TPU, "--project=p"),
    "tpu_pod": ("tpu_pod", *TPU, "--type=v3-32", "--version=tpu-ubuntu2204-base"),
    "multi_gpu": ("multi_gpu",),
    "multi_gpu, each": ("multi_gpu", "--processes=2", "--port=8500"),
    "slurm": ("slurm", "--gpus=8", "--time=24:00:00"),
    "slurm, nodes": ("slurm", "--nodes=2", "--gpus=8"),
    "slurm, jobs": ("slurm", "--array=0-35%4"),
}


def launch(script: str, *words: str, path: str | Path = "", **more) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "TMPDIR": "/tmp"}
    environment.pop("XLA_CLIENT_MEM_FRACTION", None)
    command = ["bash", SCRIPTS / f"{script}.sh", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, **more)


def printed(script: str, *flags: str, command: tuple[str, ...] = TRAIN) -> list[list[str]]:
    """The commands that a dry run prints, as words."""
    done = launch(script, *flags, "--dry_run", "--", *command)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def ours(lines: list[list[str]]) -> list[list[str]]:
    """What follows `python -m` in the commands that machines are given to run."""
    scripts = [
        shlex.split(word.partition("=")[2])
        for words in lines
        for word in words
        if word.startswith(("--command=", "--wrap="))
    ]
    runs = [words for words in [*lines, *scripts] if "python" in words]
    return [words[words.index("-m") + 1 :] for words in runs]


@pytest.fixture
def stand_ins(tmp_path) -> Path:
    """A folder of programs that only note down their words; `calls` is where."""
    for name in ("gcloud", "git", "sbatch", "env"):
        program = f"#!{sys.executable}\nimport sys\nwords = [{name!r}, *sys.argv[1:]]\n"
        program += f"open({str(tmp_path / 'calls')!r}, 'a').write(repr(words) + '\\n')\n"
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", MACHINES)
def test_a_dry_run_prints_what_is_executed(name, stand_ins):
    done = launch(*MACHINES[name], "--", *TRAIN, path=stand_ins)
    assert done.returncode == 0, done.stderr
    calls = [eval(line) for line in (stand_ins / "calls").read_text().splitlines()]
    assert sorted(calls) == sorted(printed(*MACHINES[name]))


@pytest.mark.parametrize("name", MACHINES)
def test_the_commands_flags_are_right(name, monkeypatch):
    joined = []
    monkeypatch.setattr(distributed, "join", lambda *given: joined.append(given))
    for module, *arguments in ours(printed(*MACHINES[name])):
        result = run_command(module, *arguments, "--dry_run")
        assert result.status == 0, result.err
        assert "CLASS_LABELS = ['not so', 'so']" in result.out
    each = [("127.0.0.1:8500", 2, i) for i in range(2)]
    several = {"tpu_pod": [(None,) * 3], "slurm, nodes": [(None,) * 3], "multi_gpu, each": each}
    assert joined == several.get(name, [])


def test_a_tpu_is_made_only_by_its_type():
    made, *_ = printed(*MACHINES["tpu_vm"])
    assert made[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "mine"]
    assert {"--accelerator-type=v4-8", "--zone=us-central2-b"} < set(made)
    there = printed(*MACHINES["tpu_vm, there"])
    assert not any("create" in words for words in there)
    assert all("--project=p" in words for words in there if words[0] == "gcloud")


def test_all_workers_of_a_slice_get_all_steps():
    _, archive, *steps = printed(*MACHINES["tpu_pod"])
    assert archive[0] == "git"
    assert [words[4] for words in steps] == ["scp", "ssh", "ssh"]
    assert all("--worker=all" in words for words in steps)


def test_slurm_asks_for_a_task_a_gpu_on_several_nodes():
    (one,), (several,) = printed(*MACHINES["slurm"]), printed(*MACHINES["slurm, nodes"])
    assert {"--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=24:00:00"} < set(one)
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"} < set(several)


def test_jobs_of_an_array_divide_the_cells(monkeypatch):
    cells = ("python", "-m", "prompt_tuning.experiments", "run", "experiments/methods.gin")
    (words,) = printed("slurm", "--array=0-36%4", command=cells)
    assert {"--array=0-36%4", "--ntasks-per-node=1"} < set(words)
    ((module, *arguments),) = ours([words])
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "37")
    result = run_command(module, *arguments, "--dry_run")
    assert result.status == 0, result.err
    assert "part 7 of 37" in result.out and "methods: 2 cells" in result.out


@pytest.mark.parametrize(
    ("ends", "status"),
    [((0, 0), 0), ((75, 3), 3), ((3, 75), 3), ((75, 75), 75), ((0, 75), 75)],
)
def test_the_status_of_several_processes_is_that_of_the_cause(ends, status):
    program = f"import sys; sys.exit({ends}[int(sys.argv[-1].partition('=')[2])])"
    assert launch("multi_gpu", "--processes=2", "--", sys.executable, "-c", program).returncode == (
        status
    )


def test_sigterm_reaches_all_processes(tmp_path):
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"open({str(tmp_path)!r} + '/ready' + os.environ['JAX_LOCAL_DEVICE_IDS'], 'w')\n"
        "time.sleep(100)\n"
    )
    command = ["bash", SCRIPTS / "multi_gpu.sh", "--processes=2", "--", sys.executable]
    with subprocess.Popen([*command, "-c", program]) as launcher:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(timeout=60) == 75


@pytest.mark.slow
def test_processes_of_one_host_meet():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (sys.executable, *TRAIN[1:], "--dry_run")
    done = launch("multi_gpu", "--processes=2", f"--port={port}", "--", *command, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "mesh {'data': 2, 'model': 1}" in done.stdout


@pytest.mark.parametrize(
    ("script", "flags", "part"),
    [
        ("tpu_vm", ("--zone=z",), "--name is missing"),
        ("tpu_pod", ("--name=n",), "--zone is missing"),
        ("tpu_pod", (*TPU, "--type=v3-32"), "--version is missing"),
        ("tpu_vm", (*TPU, "--zome=z"), "unknown flag --zome"),
        ("tpu_vm", (*TPU, "--project="), "--project is empty"),
        ("slurm", ("--nodes", "2"), "--nodes: flags are --NAME=VALUE"),
        ("slurm", ("--gpus=many",), "--gpus=many: must be a number"),
        ("slurm", ("--array=all",), "--array=all"),
        ("slurm", ("--array=0-3", "--nodes=2"), "--nodes=2"),
        ("multi_gpu", ("--processes=0",), "--processes=0: must be a number"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(script, flags, part):
    done = launch(script, *flags, "--dry_run", "--", *TRAIN)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and part in line


@pytest.mark.parametrize("script", ["tpu_vm", "tpu_pod", "multi_gpu", "slurm"])
def test_a_command_is_needed_and_help_is_there(script):
    done = launch(script, "--dry_run")
    assert done.returncode == 2 and done.stderr.startswith("error: no command")
    text = launch(script, "--help")
    assert text.returncode == 0 and f"usage: scripts/{script}.sh" in text.stdout
