"""Where a run's numbers go: JSON lines and TensorBoard, under T5X's metric names."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from typing import IO, Any

from etils import epath

from prompt_tuning.runtime import distributed
from prompt_tuning.runtime.files import renamed_when_done


def read_metrics(path: epath.Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, by step; empty if there is no such file.

    A run that was stopped may have written a step twice, of which the later line counts, or have
    left half a line.
    """
    lines: dict[float, dict[str, float]] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            lines[line["step"]] = line
    return [lines[step] for step in sorted(lines)]


class MetricsWriter:
    """Writes scalars of one kind (`train`, `inference_eval/TASK`, ...) below the model directory.

    `FOLDER/metrics.jsonl` has a line {"step": ..., metric: value, ...} a call, TensorBoard's event
    file lies beside it. Lines of steps after `until`, which the run goes on from, are taken back:
    a run that was stopped comes by these steps again. Of several processes the first alone writes.
    """

    def __init__(self, folder: epath.PathLike, until: int = -1) -> None:
        self._writes = distributed.is_main()
        if not self._writes:
            return
        # Its SummaryWriter writes in a thread, where errors end as tracebacks.
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
        line = json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}})
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
    """Keeps the lines of steps up to `until`."""
    if not log.exists():
        return
    lines = log.read_bytes().splitlines(keepends=True)
    with renamed_when_done(log) as temporary:
        temporary.write_bytes(b"".join(line for line in lines if _step(line) <= until))


def _step(line: bytes) -> float:
    """The step that a line is of; infinite for half a line."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except ValueError:
        return math.inf
