"""SIGTERM (Slurm's time limit, a preempted machine): a run saves its step before it ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preempted(BaseException):
    """The process was told to end; like KeyboardInterrupt, nothing on the way catches it."""


def stop(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises Preempted."""
    raise Preempted


class Watch:
    """As a context manager, makes SIGTERM wait for the end of a step.

    On several hosts JAX takes the signal, and tells all of them of the same step. Where it is not
    the main thread that trains, signals are left alone. `start` is the step before the first.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self._came = self._at_once = False

    def __enter__(self) -> "Watch":
        main = threading.current_thread() is threading.main_thread()
        self._takes = main and jax.process_count() == 1
        if self._takes:
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        if self._takes:
            signal.signal(signal.SIGTERM, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if self._at_once:
            stop(number, frame)

    def stops(self, step: int) -> bool:
        """Whether the run is to end after `step`; to be asked at every step."""
        if jax.process_count() > 1:
            # JAX lets all stop at the step after the last that one asked about, 0 at first.
            return multihost_utils.reached_preemption_sync_point(step - self._start)
        return self._came

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, SIGTERM raises Preempted rather than wait."""
        self._at_once = True
        try:
            if self._came:
                raise Preempted
            yield
        finally:
            self._at_once = False
