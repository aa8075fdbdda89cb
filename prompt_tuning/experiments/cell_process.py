"""The process of a cell: runs its steps one after the other, each in a child process."""

import contextlib
import os
import runpy
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.experiments import inputs, records
from prompt_tuning.experiments.devices import Share
from prompt_tuning.experiments.grid import Step
from prompt_tuning.runtime import exit_status
from prompt_tuning.runtime.lock import only_process

DONE, FAILED, BUSY, STOPPED = 0, 1, os.EX_UNAVAILABLE, exit_status.RESUMABLE
LOG = "log.txt"
_WAITED = {signal.SIGTERM, signal.SIGCHLD}


def run(
    folder: Path,
    steps: Sequence[Step],
    share: Share,
    flags: Sequence[str],
    *,
    cache: Path,
    keep_weights: bool,
    retry_failed: bool,
    digests: Mapping[str, str],
) -> None:
    """Runs the steps of a cell that are not done, and records the cell.

    Ends the process with `DONE`, `FAILED`, `STOPPED` (no record yet; the next run resumes the
    cell), or `BUSY` if another process holds the cell.

    SIGTERM is passed on to the running step, which saves and ends. SIGINT is ignored: the runner
    receives it too, and sends SIGTERM.

    Args:
      folder: Folder of the cell.
      steps: Steps of the cell.
      share: Share of the host that this process may use.
      flags: Flags that every step gets in addition to its own.
      cache: Folder of XLA's compilation cache, shared by all cells.
      keep_weights: See `Experiment`.
      retry_failed: Whether to run the cell again if it has failed.
      digests: What the cell reads, see `inputs.of_cell`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    share.take()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_process(epath.Path(folder)))
        except UserError:
            sys.exit(BUSY)
        record = records.read(folder)
        if record and not (retry_failed and record["status"] == "failed"):
            sys.exit(DONE if record["status"] == "done" else FAILED)
        (folder / records.RECORD).unlink(missing_ok=True)
        begun = any(records.step_is_done(folder, step) for step in steps)
        inputs.record(folder, digests, has_begun=begun)
        _output_to(folder / LOG)
        for step in steps:
            if status := _run_step(folder, step, flags):
                sys.exit(status)
        inputs.record_backbones(folder, steps, cache.parent)
        records.finish(folder, steps, keep_weights)


def _run_step(folder: Path, step: Step, flags: Sequence[str]) -> int:
    if records.step_is_done(folder, step):
        return DONE
    log, began = folder / LOG, time.perf_counter()
    start = log.stat().st_size
    status, stopped = _in_child(step.command, [*step.arguments(str(folder)), *flags])
    if stopped or status in (exit_status.RESUMABLE, exit_status.INTERRUPTED):
        return STOPPED
    if status:
        records.fail(folder, f"{step.name}: {_reason(status, log, start)}")
        return FAILED
    records.end_step(folder, step, round(time.perf_counter() - began, 1))
    return DONE


def _in_child(command: str, arguments: Sequence[str]) -> tuple[int, bool]:
    """Runs a command in a forked child, which is safe while this process has no JAX devices.

    Returns:
      The exit status, negative for a signal, and whether this process received SIGTERM meanwhile.
    """
    stopped = False
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    if not (child := os.fork()):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED)
        _become(command, arguments)
    while True:
        if signal.sigwait(_WAITED) == signal.SIGTERM:
            stopped = True
            os.kill(child, signal.SIGTERM)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), stopped


def _become(command: str, arguments: Sequence[str]) -> NoReturn:
    """Turns this process into `python -m prompt_tuning.COMMAND`."""
    status = 1
    try:
        sys.argv = [command, *arguments]
        runpy.run_module(f"prompt_tuning.{command}", run_name="__main__", alter_sys=False)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _output_to(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _reason(status: int, log: Path, start: int) -> str:
    """Returns why a step failed, in one line: its error, or the last line that it wrote."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    messages = errors or [line.strip() for line in lines if line.strip()]
    return messages[-1] if messages else f"ended with status {status}"
