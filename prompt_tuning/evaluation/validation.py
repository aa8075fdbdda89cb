"""Periodic validation while training: writes the metrics and keeps the best trained leaves."""

import math
from collections.abc import Mapping, Sequence

from etils import epath

from prompt_tuning.checkpoint.run import RunCheckpoints, steps
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.evaluation.predict import predictors_for
from prompt_tuning.evaluation.scores import mean_score, score
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.t5.paths import Params
from prompt_tuning.training.metrics_writer import MetricsWriter, read_metrics

Metrics = Mapping[str, float]


class Validation:
    """An evaluator on the evaluation sets of a task or mixture.

    The best step has the highest `mean_score`: of one set its first metric, of several the mean of
    each one's. The history lies in `MODEL_DIR/inference_eval/TASK/metrics.jsonl`, the best trained
    leaves in `MODEL_DIR/best`, so both outlive a restart: a step has its line when its leaves are
    saved, and is not measured again.

    Args:
      model_dir: the run's folder.
      sets, methods, batch_size: what is measured, how, and how many rows at once.
      start: step that the run goes on from; what was measured after it is forgotten.
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
        self._best = RunCheckpoints(epath.Path(model_dir) / "best")
        self._steps = _validated(_folders(model_dir, sets), start)
        until = max(self._steps, default=-1)
        self._writers = {
            task: MetricsWriter(folder, until) for task, folder in _folders(model_dir, sets).items()
        }

    @property
    def history(self) -> list[dict[str, float]]:
        """Lines {"step", METHOD/METRIC: value} of the one set; of several {"step", "mean"}."""
        return [{"step": step, **one_row(found)} for step, found in sorted(self._steps.items())]

    def __call__(self, tuned: TunedModel, step: int) -> None:
        if step in self._steps:
            return
        found: dict[str, Metrics] = {
            data.task: score(tuned, data, self._methods, self._batch_size) for data in self._sets
        }
        self._steps[step] = found
        if _best(self._steps, step) == step:
            # A run may go back to any of its checkpoints, and to what was best by then.
            bests = (_best(self._steps, until) for until in steps(self._model_dir))
            before = [best for best in bests if best is not None]
            self._best.save(step, tuned.trained, also=before)
            self._best.wait()
        for task, metrics in found.items():
            self._writers[task].write(step, metrics)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            which = f", {task}" if len(found) > 1 else ""
            print(f"validation at step {step}{which}: {shown}", flush=True)

    def __enter__(self) -> "Validation":
        return self

    def __exit__(self, *error: object) -> None:
        self._best.close()
        for writer in self._writers.values():
            writer.close()

    def metrics_at(self, step: int) -> dict[str, float]:
        """The metrics at a validated step, by METHOD/METRIC; of several sets {"mean": score}."""
        return one_row(self._steps[step])

    def best(self, like: Params) -> tuple[int, Params]:
        """The best step and its trained leaves, laid out as `like` is."""
        return self._best.restore(like, _best(self._steps))


def one_row(scores: Mapping[str, Metrics]) -> dict[str, float]:
    """The metrics of one task; of several by name, {"mean": `mean_score`}."""
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
    """Raises UserError if the run in `model_dir` is of other tasks, has chosen its best step by
    another metric, or has lost the best of the steps until `start`.
    """
    tasks = {path.name for path in _folder(model_dir).glob("*")}
    if tasks and tasks != {data.task for data in sets}:
        names = ", ".join(sorted(tasks))
        raise UserError(f"{model_dir}: holds a run of the task {names}; set another MODEL_DIR")
    for data in sets:
        log = _folder(model_dir) / data.task / "metrics.jsonl"
        if history := read_metrics(log):
            method = next(name for name in history[0] if name != "step").partition("/")[0]
            if method != predictors_for(data, methods)[0]:
                raise UserError(
                    f"{log}: this run chooses its best step by {method!r}; let EVAL_METHODS begin "
                    "with that, or set another MODEL_DIR"
                )
    best = _best(_validated(_folders(model_dir, sets), start))
    if best is not None:
        try:
            RunCheckpoints(model_dir / "best").check(trained, best)
        except CheckpointError as error:
            raise UserError(
                f"{error}: it is the best step until now; set another MODEL_DIR, or delete "
                f"{_folder(model_dir)} to choose among the steps to come"
            ) from error


def _folder(model_dir: epath.PathLike) -> epath.Path:
    return epath.Path(model_dir) / "inference_eval"


def _folders(model_dir: epath.PathLike, sets: Sequence[EvalSet]) -> dict[str, epath.Path]:
    return {data.task: _folder(model_dir) / data.task for data in sets}


def _validated(folders: Mapping[str, epath.Path], start: int) -> dict[int, dict[str, Metrics]]:
    """The metrics by step and task, of the steps until `start` at which each was measured."""
    lines = {
        task: {int(line.pop("step")): line for line in read_metrics(folder / "metrics.jsonl")}
        for task, folder in folders.items()
    }
    common = set.intersection(*(set(found) for found in lines.values()))
    return {
        step: {task: found[step] for task, found in lines.items()}
        for step in sorted(common)
        if step <= start
    }


def _best(found: Mapping[int, Mapping[str, Metrics]], until: float = math.inf) -> int | None:
    """The first of the best steps until one; None if none was measured."""
    means = {step: mean_score(found[step].values()) for step in sorted(found) if step <= until}
    return max(means, key=means.__getitem__, default=None)
