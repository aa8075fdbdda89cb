"""Handles SIGTERM (Slurm's time limit, a preempted machine): a run saves before it ends."""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import jax
from jax.experimental import multihost_utils


class Preempted(BaseException):
    """The process was asked to end; not an Exception, so that no handler catches it on the way."""


def stop(number: int, frame: FrameType | None) -> None:
    """Raises Preempted; a signal handler, which ignores the signal from then on.

    A launcher may signal a process twice: directly, and through its parent.
    """
    signal.signal(number, signal.SIG_IGN)
    raise Preempted


def end(status: int) -> NoReturn:
    """Ends the process of a run that a signal has stopped with a status.

    If a signal raises an exception when JAX has just compiled something, or a thread is compiling,
    the interpreter crashes at its end (jaxlib 0.10); so its last steps are left out, unless JAX
    waits for other processes.
    """
    if not jax.distributed.is_initialized():
        atexit.register(_leave, status)
    sys.exit(status)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Watch:
    """Context manager in which SIGTERM takes effect at the end of a training step.

    In a multi-process run JAX handles the signal and agrees on one step for all processes. Outside
    of the main thread, signals are left alone.
    """

    def __init__(self, start: int) -> None:
        """Watches from the step after `start`."""
        self._start = start
        self._received = self._immediate = False

    def __enter__(self) -> "Watch":
        main = threading.current_thread() is threading.main_thread()
        self._installed = main and jax.process_count() == 1
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        if self._immediate:
            stop(number, frame)

    def stops(self, step: int) -> bool:
        """Whether the run must end after `step`; must be called at every step."""
        if jax.process_count() > 1:
            # JAX agrees on the step after the latest one that any process has queried.
            return multihost_utils.reached_preemption_sync_point(step - self._start)
        return self._received

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context, SIGTERM raises Preempted immediately."""
        self._immediate = True
        try:
            if self._received:
                raise Preempted
            yield
        finally:
            self._immediate = False
