"""Where a run's numbers go: JSON lines and TensorBoard, under T5X's metric names."""

import json
from collections.abc import Mapping
from typing import IO

from etils import epath


class MetricsWriter:
    """Writes scalars of one kind (`train`, `inference_eval/TASK`, ...) below the model directory.

    `FOLDER/metrics.jsonl` has a line {"step": ..., metric: value, ...} a call, TensorBoard's event
    file lies beside it.
    """

    def __init__(self, folder: epath.PathLike) -> None:
        from tensorboardX import SummaryWriter

        self._folder = epath.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._board = SummaryWriter(str(self._folder), write_to_disk=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}})
        with (self._folder / "metrics.jsonl").open("a") as log:
            _write_line(log, line)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


def _write_line(log: IO[str], line: str) -> None:
    log.write(line + "\n")
    log.flush()
