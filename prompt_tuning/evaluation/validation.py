"""Validation during training: writes the metrics and keeps the best trained leaves."""

import math
from collections.abc import Mapping, Sequence

from etils import epath

from prompt_tuning.checkpoint.run import RunCheckpoints, steps
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.evaluation.predict import predictors_for
from prompt_tuning.evaluation.scores import mean_score, measure, most_frequent, score
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.training.metrics_writer import MetricsWriter, read_metrics
from prompt_tuning.transformer.paths import Params

Metrics = Mapping[str, float]


class Validation:
    """An evaluator on the validation sets of a task or mixture. To be used as a context manager.

    The best step is the first one with the highest `mean_score`: the mean over the sets of each
    one's first metric. A step at which it is not a finite number is never the best.
    Metrics are written to `MODEL_DIR/inference_eval/TASK/metrics.jsonl`, the best trained leaves to
    `MODEL_DIR/best`, so that both outlive a restart. A step's line is written after its leaves are
    saved; a step that has its line is not measured again.

    Args:
      model_dir: Folder of the run.
      sets: Validation sets.
      methods: Evaluation methods; the first one chooses the best step.
      batch_size: Number of rows of an evaluation batch.
      start: Step that the run resumes from; metrics of later steps are removed.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        sets: Sequence[EvalSet],
        methods: Sequence[str],
        batch_size: int,
        start: int = 0,
    ) -> None:
        self._sets, self._methods, self._batch_size = sets, methods, batch_size
        self._model_dir = model_dir
        self._best_leaves = RunCheckpoints(epath.Path(model_dir) / "best")
        self._metrics = _read_metrics(_folders(model_dir, sets), start)
        until = max(self._metrics, default=-1)
        self._writers = {
            task: MetricsWriter(folder, until) for task, folder in _folders(model_dir, sets).items()
        }

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry per step: {"step", METHOD/METRIC: value}; for several sets {"step", "mean"}."""
        return [{"step": step, **self.metrics_at(step)} for step in sorted(self._metrics)]

    def __call__(self, tuned: TunedModel, step: int) -> None:
        if step in self._metrics:
            return
        by_task: dict[str, Metrics] = {
            data.task: score(tuned, data, self._methods, self._batch_size) for data in self._sets
        }
        self._metrics[step] = by_task
        if _best_step(self._metrics, step) == step:
            # A run may go back to any of its checkpoints, and to the best step until then.
            earlier = (_best_step(self._metrics, until) for until in steps(self._model_dir))
            kept = [best for best in earlier if best is not None]
            self._best_leaves.save(step, tuned.trained, also=kept)
            self._best_leaves.wait()
        for task, metrics in by_task.items():
            self._writers[task].write(step, metrics)
            values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            suffix = f", {task}" if len(by_task) > 1 else ""
            print(f"validation at step {step}{suffix}: {values}", flush=True)
        if not math.isfinite(mean_score(by_task.values())):
            print(
                f"warning: step {step} cannot be the best one: {_not_finite(by_task)}", flush=True
            )

    def __enter__(self) -> "Validation":
        return self

    def __exit__(self, *error: object) -> None:
        self._best_leaves.close()
        for writer in self._writers.values():
            writer.close()

    def metrics_at(self, step: int) -> dict[str, float]:
        """Returns the metrics at a validated step; for several sets {"mean": score}."""
        return one_row(self._metrics[step])

    def best(self, like: Params) -> tuple[int, Params]:
        """Returns the best step and its trained leaves, laid out as `like` is.

        Raises:
          UserError: If the metric that chooses the step was a finite number at no step.
        """
        best = _best_step(self._metrics)
        if best is None:
            last = self._metrics[max(self._metrics)]
            raise UserError(
                f"{_folder(self._model_dir)}: no step is the best one of {len(self._metrics)}: "
                f"{_not_finite(last)}; use another metric, or validate on other examples"
            )
        return self._best_leaves.restore(like, best)


def one_row(scores: Mapping[str, Metrics]) -> dict[str, float]:
    """Returns the metrics of a single task; for several tasks, by name, {"mean": `mean_score`}."""
    if len(scores) > 1:
        return {"mean": mean_score(scores.values())}
    [metrics] = scores.values()
    return dict(metrics)


def check_resumes(
    model_dir: epath.Path,
    sets: Sequence[EvalSet],
    methods: Sequence[str],
    trained: Params,
    start: int,
) -> None:
    """Checks that the validation of the run in `model_dir` can continue from the step `start`.

    Raises:
      UserError: If the run has other tasks, has chosen its best step by another metric, or has lost
        the best leaves of the steps until `start`.
    """
    tasks = {path.name for path in _folder(model_dir).glob("*")}
    if tasks and tasks != {data.task for data in sets}:
        names = ", ".join(sorted(tasks))
        raise UserError(f"{model_dir}: contains a run on the task {names}; set another MODEL_DIR")
    for data in sets:
        log = _folder(model_dir) / data.task / "metrics.jsonl"
        if history := read_metrics(log):
            chosen = next(name for name in history[0] if name != "step")
            method, _, metric = chosen.partition("/")
            if method != predictors_for(data, methods)[0]:
                raise UserError(
                    f"{log}: this run chooses its best step by {method!r}; put it first in "
                    "EVAL_METHODS, or set another MODEL_DIR"
                )
            if (first := next(iter(measure(data, most_frequent(data))))) != metric:
                raise UserError(
                    f"{log}: this run chooses its best step by {metric!r}, not {first!r}; put it "
                    "first in METRICS, or set another MODEL_DIR"
                )
    best = _best_step(_read_metrics(_folders(model_dir, sets), start))
    if best is not None:
        try:
            RunCheckpoints(model_dir / "best").check(trained, best)
        except CheckpointError as error:
            raise UserError(
                f"{error}: it has the best step so far; set another MODEL_DIR, or delete "
                f"{_folder(model_dir)} to choose among the steps from here on"
            ) from error


def _folder(model_dir: epath.PathLike) -> epath.Path:
    return epath.Path(model_dir) / "inference_eval"


def _folders(model_dir: epath.PathLike, sets: Sequence[EvalSet]) -> dict[str, epath.Path]:
    return {data.task: _folder(model_dir) / data.task for data in sets}


def _read_metrics(folders: Mapping[str, epath.Path], start: int) -> dict[int, dict[str, Metrics]]:
    """Metrics by step and task, of the steps until `start` at which every task was measured."""
    lines = {
        task: {int(line.pop("step")): line for line in read_metrics(folder / "metrics.jsonl")}
        for task, folder in folders.items()
    }
    common = set.intersection(*map(set, lines.values()))
    return {
        step: {task: by_step[step] for task, by_step in lines.items()}
        for step in sorted(common)
        if step <= start
    }


def _best_step(metrics: Mapping[int, Mapping[str, Metrics]], until: float = math.inf) -> int | None:
    """The first of the best steps, of those up to `until`; None if none has a finite score."""
    means = {step: mean_score(metrics[step].values()) for step in sorted(metrics) if step <= until}
    finite = {step: mean for step, mean in means.items() if math.isfinite(mean)}
    return max(finite, key=finite.__getitem__, default=None)


def _not_finite(by_task: Mapping[str, Metrics]) -> str:
    """Names the metrics that choose the best step and are not finite numbers."""
    first = {task: next(iter(metrics.items())) for task, metrics in by_task.items()}
    return ", ".join(
        f"{name} of {task} is {value}"
        for task, (name, value) in first.items()
        if not math.isfinite(value)
    )
