"""Periodic validation while training: writes the metrics and keeps the best trained leaves."""

import contextlib
import json
from collections.abc import Mapping, Sequence

from etils import epath

from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSet, mean_score, methods_for, score
from prompt_tuning.metrics_writer import MetricsWriter
from prompt_tuning.params import Params
from prompt_tuning.trainer import TunedModel

Metrics = Mapping[str, float]


class Validation:
    """An evaluator on the evaluation sets of a task or mixture.

    The best step has the highest `mean_score`: of one set its first metric, of several the mean of
    each one's. The history lies in `MODEL_DIR/inference_eval/TASK/metrics.jsonl`, the best trained
    leaves in `MODEL_DIR/best`, so both outlive a restart.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        sets: Sequence[EvalSet],
        methods: Sequence[str],
        batch_size: int,
    ) -> None:
        self._sets, self._methods, self._batch_size = sets, methods, batch_size
        folders = {data.task: _folder(model_dir) / data.task for data in sets}
        self._writers = {task: MetricsWriter(folder) for task, folder in folders.items()}
        self._best = RunCheckpoints(epath.Path(model_dir) / "best", keep=1)
        self._steps = _validated(folders)

    @property
    def history(self) -> list[dict[str, float]]:
        """Lines {"step", METHOD/METRIC: value} of the one set; of several {"step", "mean"}."""
        return [{"step": step, **one_row(found)} for step, found in sorted(self._steps.items())]

    def __call__(self, tuned: TunedModel, step: int) -> None:
        found: dict[str, Metrics] = {
            data.task: score(tuned, data, self._methods, self._batch_size) for data in self._sets
        }
        # A run that was stopped between two checkpoints comes by some steps again.
        self._steps = {done: metrics for done, metrics in self._steps.items() if done < step}
        best = max((mean_score(done.values()) for done in self._steps.values()), default=None)
        self._steps[step] = found
        if best is None or mean_score(found.values()) > best:
            self._best.save(step, tuned.trained)
        for task, metrics in found.items():
            self._writers[task].write(step, metrics)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            which = f", {task}" if len(found) > 1 else ""
            print(f"validation at step {step}{which}: {shown}", flush=True)

    def best(self, like: Params) -> tuple[int, Params]:
        """The step and trained leaves of the best validation; closes the evaluator."""
        step, trained = self._best.restore(like)
        self._best.close()
        for writer in self._writers.values():
            writer.close()
        return step, trained


def one_row(scores: Mapping[str, Metrics]) -> dict[str, float]:
    """The metrics of one task; of several by name, {"mean": `mean_score`}."""
    if len(scores) > 1:
        return {"mean": mean_score(scores.values())}
    [metrics] = scores.values()
    return dict(metrics)


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


def check_goes_on(model_dir: epath.Path, sets: Sequence[EvalSet], methods: Sequence[str]) -> None:
    """Raises UserError if the run in `model_dir` is of other tasks, or has chosen its best step by
    another metric.
    """
    tasks = {path.name for path in _folder(model_dir).glob("*")}
    if tasks and tasks != {data.task for data in sets}:
        names = ", ".join(sorted(tasks))
        raise UserError(f"{model_dir}: holds a run of the task {names}; set another MODEL_DIR")
    for data in sets:
        log = _folder(model_dir) / data.task / "metrics.jsonl"
        if history := read_metrics(log):
            method = next(name for name in history[0] if name != "step").partition("/")[0]
            if method != methods_for(data, methods)[0]:
                raise UserError(
                    f"{log}: this run chooses its best step by {method!r}; let EVAL_METHODS begin "
                    "with that, or set another MODEL_DIR"
                )


def _folder(model_dir: epath.PathLike) -> epath.Path:
    return epath.Path(model_dir) / "inference_eval"


def _validated(folders: Mapping[str, epath.Path]) -> dict[float, dict[str, Metrics]]:
    """The metrics by step and task, of the steps at which each task was measured."""
    lines = {
        task: {line.pop("step"): line for line in read_metrics(folder / "metrics.jsonl")}
        for task, folder in folders.items()
    }
    steps = set.intersection(*(set(found) for found in lines.values()))
    return {step: {task: found[step] for task, found in lines.items()} for step in sorted(steps)}
