"""Runs the cells of an experiment that have no record: one process per cell, several at a time."""

import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess

from prompt_tuning.errors import UserError
from prompt_tuning.experiments import cell_process, inputs, records
from prompt_tuning.experiments.devices import Share
from prompt_tuning.experiments.grid import Cell, Experiment
from prompt_tuning.experiments.wording import counted
from prompt_tuning.runtime import preemption

_FORK = multiprocessing.get_context("forkserver")
_ASK_AGAIN = 2.0  # seconds until the runner tries again a cell that another process holds


class Runner:
    """Runs cells, and keeps account of them.

    Args:
      experiment: The experiment of the cells.
      cells: Cells to run, in order.
      shares: Shares of the host, one per worker.
      flags: Flags that every command gets in addition to its own.
      retry_failed: Whether to run failed cells again.
      modules: Names of modules to import once, before the cells' processes are forked.
      gin_folders: Folders that are searched for gin files.

    Raises:
      UserError: If a cell that is done, wholly or in part, has read files that have changed since.
    """

    def __init__(
        self,
        experiment: Experiment,
        cells: Sequence[Cell],
        shares: Sequence[Share],
        flags: Sequence[str],
        retry_failed: bool,
        modules: Sequence[str],
        gin_folders: Sequence[str],
    ) -> None:
        self._experiment, self._cells, self._flags = experiment, cells, flags
        self._retry, self._modules, self._gin_folders = retry_failed, modules, gin_folders
        if changed := inputs.changes(experiment, [cell for cell in cells if self._has_begun(cell)]):
            raise UserError(changed)
        self._free = list(shares)
        self._workers = len(shares)
        self._queue = deque(cell for cell in cells if self._is_missing(cell))
        self._running: dict[int, tuple[BaseProcess, Cell, Share, float]] = {}
        self._busy_until: dict[str, float] = {}
        self._seconds: list[float] = []

    def run(self) -> Counter[str]:
        """Runs cells until all of them have a record, those that other runners hold included.

        Returns:
          `count()`.

        Raises:
          KeyboardInterrupt, Preempted: after the running cells have saved and ended.
        """
        self._experiment.make_root()
        _FORK.set_forkserver_preload([cell_process.__name__, *self._modules])
        print(f"{self._experiment.name}: {self._state()}", flush=True)
        try:
            while self._queue or self._running:
                self._start()
                self._wait()
        except (KeyboardInterrupt, preemption.Preempted):
            self._stop()
            raise
        return self.count()

    def count(self) -> Counter[str]:
        """Returns how many cells are "done", "failed" and "missing"."""
        lines = (records.read(self._experiment.cell_folder(cell)) for cell in self._cells)
        return Counter(record["status"] if record else "missing" for record in lines)

    def _is_missing(self, cell: Cell) -> bool:
        record = records.read(self._experiment.cell_folder(cell))
        return record is None or (self._retry and record["status"] == "failed")

    def _has_begun(self, cell: Cell) -> bool:
        folder = self._experiment.cell_folder(cell)
        if not self._is_missing(cell):
            return (records.read(folder) or {}).get("status") == "done"
        return any(records.step_is_done(folder, step) for step in cell.steps)

    def _start(self) -> None:
        for _ in range(len(self._queue)):
            if not self._free:
                return
            cell = self._queue.popleft()
            if time.monotonic() < self._busy_until.get(cell.digest, 0):
                self._queue.append(cell)
                continue
            self._launch(cell, self._free.pop(0))

    def _launch(self, cell: Cell, share: Share) -> None:
        process = _FORK.Process(
            target=cell_process.run,
            args=(self._experiment.cell_folder(cell), cell.steps, share, self._flags),
            kwargs={
                "cache": self._experiment.root / "compiled",
                "keep_weights": self._experiment.keep_weights,
                "retry_failed": self._retry,
                "digests": inputs.of_cell(cell, self._gin_folders, self._experiment.root),
            },
        )
        process.start()
        self._running[process.sentinel] = process, cell, share, time.monotonic()

    def _wait(self) -> None:
        ended = connection.wait(list(self._running), timeout=_ASK_AGAIN)
        for sentinel in set(self._running).intersection(ended):
            process, cell, share, began = self._running.pop(sentinel)
            process.join()
            self._free.insert(0, share)
            self._ended(cell, process.exitcode, time.monotonic() - began)

    def _ended(self, cell: Cell, status: int | None, seconds: float) -> None:
        if status == cell_process.BUSY:
            if cell.digest not in self._busy_until:
                print(f"{cell.name}: held by another process; waiting", flush=True)
            self._busy_until[cell.digest] = time.monotonic() + _ASK_AGAIN
            self._queue.append(cell)
            return
        folder = self._experiment.cell_folder(cell)
        record = records.read(folder)
        if record is None and status != cell_process.STOPPED:
            records.fail(folder, f"its process ended with status {status}")
            record = records.read(folder)
        self._seconds.append(seconds)
        outcome, error = (record["status"], record["error"]) if record else ("stopped", None)
        why = f" ({error}; {folder / cell_process.LOG})" if error else ""
        print(f"{outcome}: {cell.name}, {seconds:.0f} s{why}; {self._state()}", flush=True)

    def _state(self) -> str:
        count = self.count()
        parts = [f"{count['done']} of {len(self._cells)} done"]
        parts += [f"{count[name]} {name}" for name in ("missing", "failed") if count[name]]
        left = len(self._queue) + len(self._running)
        if self._seconds and left:
            mean = sum(self._seconds) / len(self._seconds)
            minutes = round(mean * left / self._workers / 60)
            parts.append(f"about {counted(minutes, 'minute')} left")
        return ", ".join(parts)

    def _stop(self) -> None:
        for process, *_ in self._running.values():
            process.terminate()
        for process, *_ in self._running.values():
            process.join()
