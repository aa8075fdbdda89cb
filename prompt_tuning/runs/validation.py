"""Periodic validation while training: writes the metrics and keeps the best trained leaves."""

import contextlib
import json
from collections.abc import Sequence

from etils import epath

from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import METHODS, EvalSet, measure
from prompt_tuning.metrics_writer import MetricsWriter
from prompt_tuning.params import Params
from prompt_tuning.trainer import TunedModel


class Validation:
    """An evaluator on one `EvalSet`; higher is better for the metric that chooses.

    The history lies in `MODEL_DIR/inference_eval/TASK/metrics.jsonl`, the best trained leaves in
    `MODEL_DIR/best`, so both outlive a restart.
    """

    def __init__(
        self, model_dir: epath.PathLike, data: EvalSet, methods: Sequence[str], batch_size: int
    ) -> None:
        self._data, self._methods, self._batch_size = data, methods, batch_size
        self._folder = epath.Path(model_dir) / "inference_eval" / data.task
        self._writer = MetricsWriter(self._folder)
        self._best = RunCheckpoints(epath.Path(model_dir) / "best", keep=1)
        self.history = read_metrics(self._folder / "metrics.jsonl")

    @property
    def metric(self) -> str:
        """The name of the metric that chooses the best step."""
        return next(name for name in self.history[0] if name != "step")

    def __call__(self, tuned: TunedModel, step: int) -> None:
        metrics = {
            f"{method}/{name}": value
            for method in self._methods
            for name, value in measure(
                self._data, METHODS[method](tuned, self._data, self._batch_size)
            ).items()
        }
        # A run that was stopped between two checkpoints comes by some steps again.
        self.history = [line for line in self.history if line["step"] < step]
        before = max((line[self.metric] for line in self.history), default=None)
        self.history.append({"step": step, **metrics})
        if before is None or metrics[self.metric] > before:
            self._best.save(step, tuned.trained)
        self._writer.write(step, metrics)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"validation at step {step}: {shown}", flush=True)

    def best(self, like: Params) -> tuple[int, Params]:
        """The step and trained leaves of the best validation; closes the evaluator."""
        step, trained = self._best.restore(like)
        self._best.close()
        self._writer.close()
        return step, trained


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


def check_goes_on(model_dir: epath.Path, task: str, methods: Sequence[str]) -> None:
    """Raises UserError if the run in `model_dir` is of another task, or has chosen its best step by
    another metric.
    """
    others = [path.name for path in (model_dir / "inference_eval").glob("*") if path.name != task]
    if others:
        raise UserError(f"{model_dir}: holds a run of the task {others[0]}; set another MODEL_DIR")
    log = model_dir / "inference_eval" / task / "metrics.jsonl"
    if history := read_metrics(log):
        method = next(name for name in history[0] if name != "step").partition("/")[0]
        if method != methods[0]:
            raise UserError(
                f"{log}: this run chooses its best step by {method!r}; let EVAL_METHODS begin with "
                "that, or set another MODEL_DIR"
            )
