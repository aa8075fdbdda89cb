"""The thread that owns the device, and the jobs that it works on."""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from prompt_tuning.server.device import Input
from prompt_tuning.server.scheduler import Batch, Row, Scheduler


class Runner(Protocol):
    """What runs a batch: a `Device`."""

    def run(self, batch: Batch) -> list[tuple[np.ndarray, ...]]: ...


class NotFinite(RuntimeError):
    """A row's result has a NaN or an infinity."""


class Stopped(RuntimeError):
    """The engine takes no jobs any more."""


class Place:
    """A row's place in its job: what the device needs, and whom the answer is for."""

    def __init__(self, job: "Job", number: int, each: Input) -> None:
        self.job, self.number, self.input = job, number, each


class Job:
    """The rows of one request.

    Attributes:
      future: Gets the arrays of all rows, in their order, or the error of one.
      rows: For the scheduler.
      started: When the first of its rows was taken out of the queue; None before.
      batch_rows, batch_tasks: Rows and distinct tasks of the last batch with one of its rows.
    """

    def __init__(self, rows: Sequence[tuple[Row, Input]], on_end: Callable[[], object]) -> None:
        """A job; `on_end` is called once no row of it waits or runs, from any thread."""
        self.future: concurrent.futures.Future[list[tuple[np.ndarray, ...]]]
        self.future = concurrent.futures.Future()
        self.rows = [row for row, _ in rows]
        for number, (row, each) in enumerate(rows):
            row.payload = Place(self, number, each)
        self.queued = 0.0
        self.started: float | None = None
        self.batch_rows = self.batch_tasks = 0
        self.on_end, self.left = on_end, len(rows)
        self.results: list[Any] = [None] * len(rows)


class Engine:
    """Takes jobs from any thread, and computes their rows in mixed batches in one thread."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[Batch, float], object] = lambda batch, seconds: None,
    ) -> None:
        """An engine that is not started yet.

        Args:
          runner: Runs a batch.
          scheduler: Empty.
          clock: Seconds.
          on_batch: Called after each batch with its seconds.
        """
        self._runner, self._scheduler = runner, scheduler
        self._clock, self._on_batch = clock, on_batch
        self._changed = threading.Condition()
        self._draining = False
        self.running = 0
        self._thread = threading.Thread(target=self._loop, name="device", daemon=True)

    @property
    def waiting(self) -> int:
        """Number of rows in the queue."""
        return len(self._scheduler)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Takes no more jobs; those that it has are done."""
        with self._changed:
            self._draining = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Waits for the last job after `drain`."""
        self._thread.join(seconds)

    def check(self) -> None:
        """Raises Full if no job would be taken now."""
        with self._changed:
            self._scheduler.check()

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
          Full: if it would wait for too long; `on_end` is then called.
          Stopped: after `drain`; likewise.
        """
        job.queued = self._clock()
        try:
            with self._changed:
                if self._draining:
                    raise Stopped("the server is stopping")
                self._scheduler.add(job.rows, job.queued)
                self._changed.notify()
        except BaseException:
            job.on_end()
            raise

    def cancel(self, job: Job) -> None:
        """Drops a job whose caller has left: waiting rows leave, a running row's result is lost."""
        with self._changed:
            left = self._scheduler.remove(job.rows)
            job.left -= len(left)
            ended = bool(left) and not job.left
        job.future.cancel()
        if ended:
            job.on_end()

    def _loop(self) -> None:
        while (batch := self._next()) is not None:
            start = self._clock()
            for row in batch.rows:
                job = row.payload.job
                job.started = start if job.started is None else job.started
            results: Sequence[Any]
            try:
                results = self._runner.run(batch)
            except Exception as error:  # of the device; the next batch may do
                results = [error] * len(batch.rows)
            end = self._clock()
            with self._changed:
                self._scheduler.finished(batch, end - start, end)
                self.running = 0
            self._on_batch(batch, end - start)
            self._deliver(batch, results)

    def _next(self) -> Batch | None:
        with self._changed:
            while True:
                batch, pause = self._scheduler.next(self._clock())
                if batch is not None:
                    self.running = len(batch.rows)
                    return batch
                if self._draining and not len(self._scheduler):
                    return None
                self._changed.wait(pause)

    def _deliver(self, batch: Batch, results: Sequence[Any]) -> None:
        tasks, ended = len({row.task for row in batch.rows}), []
        for row, result in zip(batch.rows, results, strict=True):
            job = row.payload.job
            job.results[row.payload.number] = result
            job.batch_rows, job.batch_tasks = len(batch.rows), tasks
            with self._changed:
                job.left -= 1
                if not job.left:
                    ended.append(job)
        for job in ended:
            job.on_end()
            if job.future.set_running_or_notify_cancel():
                _answer(job)


def _answer(job: Job) -> None:
    for result in job.results:
        if isinstance(result, Exception):
            job.future.set_exception(result)
            return
        if not all(np.isfinite(array).all() for array in result if array.dtype.kind == "f"):
            job.future.set_exception(NotFinite("the model's scores are not finite numbers"))
            return
    job.future.set_result(job.results)
