"""Several processes of `jax.distributed` on this machine, started as a user starts them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import process_run
import pytest
from safetensors.numpy import load_file

from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.methods import ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runtime import exit_status
from prompt_tuning.testing import assert_mistake, run_command

GIN = """
from __gin__ import dynamic_registration
import process_run
process_run.run:
  model_dir = %MODEL_DIR
  backbone = %BACKBONE
  num_partitions = %NUM_PARTITIONS
  signals = %SIGNALS
"""
KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)  # gin reads no names
# The one line of a process that has found another one dead.
DIED = "error: process {} of {} (on {}) died or cannot be reached"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    rng = np.random.default_rng(0)
    shapes = ParamSplit.of(process_run.CONFIG, ModelTuning()).shapes
    backbone.save(path, {k: rng.normal(0, 0.3, leaf.shape) for k, leaf in shapes.items()})
    return str(path)


@pytest.fixture(scope="module")
def alone(weights, tmp_path_factory) -> Path:
    """The folder of a run of one process with one device on the same batches."""
    folder = tmp_path_factory.mktemp("alone")
    process_run.run(str(folder), weights, devices=jax.devices()[:1])
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(
    count: int, folder: Path, weights: str, partitions: int = 1, signals: Mapping = {}
) -> list[subprocess.CompletedProcess[str]]:
    """Runs `count` processes until all have ended; `signals` are as in `process_run.run`."""
    file = folder.with_suffix(".gin")
    settings = {
        "MODEL_DIR": str(folder),
        "BACKBONE": weights,
        "NUM_PARTITIONS": partitions,
        "SIGNALS": signals,
    }
    file.write_text("\n".join([f"{name} = {value!r}" for name, value in settings.items()]) + GIN)
    here = Path(__file__).parents[1]
    shared = (sys.executable, here / "process_run.py", f"--gin_file={file}")
    shared += (f"--coordinator_address=127.0.0.1:{free_port()}", f"--process_count={count}")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    processes = [
        subprocess.Popen(
            [*shared, f"--process_index={index}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def trained(folder: Path, which: str = "last") -> dict[str, np.ndarray]:
    return load_file(folder / f"trained_{which}.safetensors")


def predictions(folder: Path) -> list[str]:
    return (folder / "infer" / "remainders-generate.jsonl").read_text().splitlines()


def validation(folder: Path) -> list[dict[str, float]]:
    log = folder / "inference_eval" / "remainders" / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def files(folder: Path) -> set[str]:
    """Files of a run's folder, without the names that depend on processes or on the time."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {re.sub(r"(events\.).*", r"\1", name) for name in names if "/state/" not in name}


def assert_all_ended(processes, status: int = 0) -> None:
    assert [process.returncode for process in processes] == [status] * len(processes), processes


def assert_as_alone(folder: Path, alone: Path, processes) -> None:
    assert_all_ended(processes)
    for which in ("best", "last"):
        leaves = trained(alone, which)
        assert len(leaves) > 2
        for path, leaf in trained(folder, which).items():
            np.testing.assert_allclose(leaf, leaves[path], rtol=0, atol=1e-5, err_msg=path)
    assert validation(folder) == validation(alone)
    assert predictions(folder) == predictions(alone)
    assert files(folder) == files(alone) | {"config.gin"}
    assert not list(folder.rglob("*.tmp*"))
    assert "validation at step 12" in processes[0].stdout
    assert [process.stdout for process in processes[1:]] == [""] * (len(processes) - 1)
    assert [process.stderr for process in processes] == [""] * len(processes)


def test_two_processes_are_as_one(alone, weights, tmp_path):
    """Each process has half of each batch."""
    folder = tmp_path / "run"
    assert_as_alone(folder, alone, start(2, folder, weights))


def assert_names_the_dead(processes, dead: int) -> None:
    for index, process in enumerate(processes):
        if index == dead:
            assert process.returncode == -signal.SIGKILL
            continue
        assert process.returncode == exit_status.RESUMABLE
        [line] = process.stderr.splitlines()
        assert line.startswith(DIED.format(dead, len(processes), socket.gethostname()))


def assert_resumes_as_alone(folder: Path, alone: Path, processes, step: int | None) -> None:
    assert_as_alone(folder, alone, processes)
    assert f"resuming from step {step}" in processes[0].stdout


@pytest.mark.slow
def test_a_run_whose_second_process_is_killed_resumes_as_one(alone, weights, tmp_path):
    """Each process has half of each weight. It is signalled when it makes a batch, which is at most
    three ahead of the step.
    """
    folder = tmp_path / "run"
    assert_names_the_dead(start(2, folder, weights, 2, signals={1: {10: KILL}}), 1)
    saved = RunCheckpoints(folder).latest
    assert saved in (3, 6, 9)
    assert_resumes_as_alone(folder, alone, start(2, folder, weights, 2), saved)


@pytest.mark.slow
def test_a_run_that_is_stopped_resumes_as_one(alone, weights, tmp_path):
    folder = tmp_path / "run"
    stopped = start(2, folder, weights, 2, signals={1: {2: TERM}})
    assert_all_ended(stopped, exit_status.RESUMABLE)
    assert {process.stderr for process in stopped} == {
        "stopped: run the same command again to resume\n"
    }
    saved = RunCheckpoints(folder).latest
    assert 0 < saved < 12
    assert_resumes_as_alone(folder, alone, start(2, folder, weights, 2), saved)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 2])
def test_four_processes_without_one_end_and_resume_as_one(alone, weights, tmp_path, dead):
    folder = tmp_path / "run"
    assert_names_the_dead(start(4, folder, weights, 2, signals={dead: {10: KILL}}), dead)
    saved = RunCheckpoints(folder).latest
    assert_resumes_as_alone(folder, alone, start(4, folder, weights, 2), saved)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--process_count=2 --process_index=0", "--coordinator_address=None"),
        ("--coordinator_address=a:1 --process_index=0", "--process_count=None"),
        ("--coordinator_address=a:1 --process_count=2", "give all three, or --multiprocess alone"),
        ("--coordinator_address=a --process_count=2 --process_index=0", "must be HOST:PORT"),
        ("--coordinator_address=a:99999 --process_count=2 --process_index=0", "must be HOST:PORT"),
        ("--coordinator_address=a:1 --process_count=0 --process_index=0", "--process_count=0: "),
        ("--coordinator_address=a:1 --process_count=2 --process_index=2", "from 0 to 1"),
        ("--coordinator_address=a:1 --process_count=2 --process_index=-1", "from 0 to 1"),
        ("--coordinator_address=a:1 --process_count=two", "process_count"),
    ],
)
def test_invalid_flags(flags, part):
    assert_mistake(run_command(process_run.run, *flags.split()), part)


def test_a_port_in_use():
    with socket.create_server(("", 0)) as taken:
        flags = f"--coordinator_address=a:{taken.getsockname()[1]} --process_count=2"
        result = run_command(process_run.run, *flags.split(), "--process_index=0")
    assert_mistake(result, "process 0 cannot open the port")


IMPATIENT = """
from prompt_tuning.cli import gin_command
from prompt_tuning.runtime import distributed
distributed.CONNECT_SECONDS = 2
gin_command.main(print)
"""


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--multiprocess", "--multiprocess: cannot join"),
        (
            "--coordinator_address={} --process_count=2 --process_index=1",
            "not all processes joined within 2 seconds",
        ),
    ],
)
def test_processes_that_do_not_join(flags, part):
    arguments = flags.format(f"127.0.0.1:{free_port()}").split()
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    [line] = done.stderr.splitlines()
    assert (done.returncode, line[:7]) == (2, "error: ")
    assert part in line
