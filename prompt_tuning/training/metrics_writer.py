"""Writes a run's metrics as JSON lines and TensorBoard events, under T5X's names."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import IO, Any

from etils import epath

from prompt_tuning.runtime import distributed
from prompt_tuning.runtime.files import from_json, renamed_when_done, to_json


def read_metrics(path: epath.Path) -> list[dict[str, float]]:
    """Reads the lines of a `metrics.jsonl` in the order of steps; returns none if it is missing.

    An interrupted run may have written a step twice, in which case the later line counts, or an
    incomplete line, which is ignored.
    """
    lines: dict[float, dict[str, float]] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            line = from_json(text)
            lines[line["step"]] = line
    return [lines[step] for step in sorted(lines)]


class MetricsWriter:
    """Writes scalars to a folder, such as `train` or `inference_eval/TASK` in a run's folder.

    Each call adds a line {"step": ..., METRIC: value, ...} to `metrics.jsonl` and events to
    TensorBoard's file beside it. Only process 0 writes.

    Args:
      folder: Folder to write to.
      until: Step that the run resumes from. Lines of later steps are removed, because the run will
        take those steps again.
    """

    def __init__(self, folder: epath.PathLike, until: int = -1) -> None:
        self._writes = distributed.is_main()
        if not self._writes:
            return
        # Not its SummaryWriter, which writes in a thread, where errors become tracebacks.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder = epath.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        _cut(self._folder / "metrics.jsonl", until)
        self._board = EventsWriter(str(self._folder / "events"), f".{os.getpid()}")
        if until >= 0:
            self._show(until + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        if not self._writes:
            return
        line = to_json({"step": step, **{k: float(v) for k, v in metrics.items()}})
        with (self._folder / "metrics.jsonl").open("a") as log:
            _write_line(log, line)
        for name, value in metrics.items():
            self._show(step, summary=scalar(name, value))
        self._board.flush()

    def _show(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._board.write_event(Event(step=step, wall_time=time.time(), **content))

    def close(self) -> None:
        if self._writes:
            self._board.close()


def _write_line(log: IO[str], line: str) -> None:
    log.write(line + "\n")
    log.flush()


def _cut(log: epath.Path, until: int) -> None:
    """Removes the lines of steps after `until`."""
    if not log.exists():
        return
    lines = log.read_bytes().splitlines(keepends=True)
    with renamed_when_done(log) as temporary:
        temporary.write_bytes(b"".join(line for line in lines if _step(line) <= until))


def _step(line: bytes) -> float:
    """Returns the step of a line; infinity for an incomplete line."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except ValueError:
        return math.inf
