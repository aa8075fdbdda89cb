"""Periodic validation while training: writes the metrics and keeps the best trained leaves."""

import json
from collections.abc import Sequence

from etils import epath

from prompt_tuning.checkpoint.run import RunCheckpoints
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
        log = self._folder / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        self.history: list[dict[str, float]] = [json.loads(line) for line in lines]

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
