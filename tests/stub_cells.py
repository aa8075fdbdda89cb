"""The command `experiments` with cells that write numbers in place of training, for the tests of
its runner.

A command runs in a process forked from a server that has done the imports, and forks its cells
itself, so that a group of processes can be killed at once.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from etils import epath

from prompt_tuning.experiments import cell_process, commands, dry_run, runner
from prompt_tuning.experiments.results import tables
from prompt_tuning.runs.result_file import FROZEN, MAJORITY, TRAINED, Result
from prompt_tuning.runtime import exit_status, files

BASELINES = {MAJORITY: 0.25, FROZEN: 0.5}
D_MODEL = 16
FINISHED = "trained to the end"
_IMPORTED = (commands, dry_run, runner, tables)  # by the server, once
_FORK = multiprocessing.get_context("forkserver")

# Called with the name of a moment of a cell's life, in the process that has come to it.
Hook = Callable[[str], None]


class Command:
    """A running command; `folder` is its working directory."""

    def __init__(self, folder: Path, words: Sequence[str], hook: Hook | None = None) -> None:
        _FORK.set_forkserver_preload([module.__name__ for module in _IMPORTED])
        self._out, out = _FORK.Pipe(duplex=False)
        self._err, err = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=_main, args=(str(folder), words, out, err, hook))
        self._process.start()
        self.pid = self._process.pid
        out.close()
        err.close()

    def lines(self) -> Iterator[str]:
        """The lines of its output, as they come."""
        with open(os.dup(self._out.fileno())) as file:
            yield from file

    def result(self) -> tuple[int, str, str]:
        """Waits for its end; returns its status, what is left of its output, and its errors."""
        out = "".join(self.lines())
        with open(os.dup(self._err.fileno())) as file:
            err = file.read()
        self._process.join()
        return self._process.exitcode, out, err


def accuracy(seed: int, length: int) -> float:
    """The score of a cell."""
    return (3 * seed + length) / 8


def kill_once(moment: str) -> None:
    """Kills the whole command at each moment that no earlier command has come to."""
    path = Path("moments", moment)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.killpg(os.getpgid(0), signal.SIGKILL)


def terminate(moment: str) -> None:
    """Sends SIGTERM to the runner, as a scheduler does, and waits for the runner to pass it on."""
    if moment.endswith("step 1"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getsid(0), signal.SIGTERM)
        signal.sigwait({signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.raise_signal(signal.SIGTERM)


def _main(folder: str, words: Sequence[str], out: Any, err: Any, hook: Hook | None) -> None:
    os.setsid()
    os.chdir(folder)
    for connection, descriptor in ((out, 1), (err, 2)):
        os.dup2(connection.fileno(), descriptor)
        connection.close()
    sys.argv = ["experiments", *words]
    with (
        mock.patch.object(runner, "_FORK", multiprocessing.get_context("fork")),
        mock.patch.object(runner, "_ASK_AGAIN", 0.05),
        mock.patch.object(cell_process, "_become", _becomes(hook or (lambda moment: None))),
    ):
        if hook:
            _watch_files(hook)
        runpy.run_module("prompt_tuning.experiments", run_name="__main__")


def _watch_files(hook: Hook) -> None:
    """Has the hook called before and after each file of a cell gets its name."""
    plain = files.renamed_when_done

    @contextlib.contextmanager
    def watched(path, **options):
        path = Path(path).absolute()
        cell = (
            "-".join(path.parts[path.parts.index("cells") + 1 :]) if "cells" in path.parts else ""
        )
        with plain(path, **options) as temporary:
            yield temporary
            if cell:
                hook(f"{cell} before")
        if cell:
            hook(f"{cell} after")

    files.renamed_when_done = watched


def _becomes(hook: Hook) -> Callable[[str, Sequence[str]], NoReturn]:
    def become(command: str, arguments: Sequence[str]) -> NoReturn:
        prefix = "--gin."
        pairs = (word.removeprefix(prefix).split("=", 1) for word in arguments if prefix in word)
        status = 1
        try:
            status = _train(dict(pairs), hook)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return become


def _train(macros: Mapping[str, str], hook: Hook) -> int:
    """What `train` leaves in its folder, step by step."""
    folder, backbone = Path(macros["MODEL_DIR"]), macros["INITIAL_CHECKPOINT_PATH"]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    if not Path(backbone).exists():
        print(f"error: INITIAL_CHECKPOINT_PATH = {backbone!r}: no such file", file=sys.stderr)
        return exit_status.USAGE_ERROR
    done = len(list(folder.glob("checkpoint_*")))
    for step in range(done, int(macros["TRAIN_STEPS"])):
        (folder / f"checkpoint_{step}").mkdir(parents=True)
        hook(f"{folder.parent.name} step {step}")
        if stopped:
            print("stopped", file=sys.stderr)
            return exit_status.RESUMABLE
    (folder / "best").mkdir(exist_ok=True)
    (folder / "config.gin").write_text(repr(macros))
    length = int(macros["PROMPT_LENGTH"])
    trained = accuracy(int(macros["RANDOM_SEED"]), length)
    print(FINISHED, flush=True)
    result(trained, D_MODEL * length).write(epath.Path(folder))
    return 0


def result(trained: float, parameters: int) -> Result:
    """What a run measured whose prompt has so many parameters."""
    rows = {MAJORITY: BASELINES[MAJORITY], FROZEN: BASELINES[FROZEN], TRAINED: trained}
    return Result(
        task="remainders",
        splits={"remainders": "test"},
        scores={"remainders": {name: {"rank/accuracy": value} for name, value in rows.items()}},
        best_step=2,
        validation={"rank/accuracy": trained},
        trained_parameters=parameters,
        total_parameters=1_000 + parameters,
        resumed_from_step=0,
        seconds=0.5,
    )
