"""Evaluation of a trained prompt (or other trained leaves) on a split of a task."""

from collections.abc import Callable, Sequence

from etils import epath

from prompt_tuning import sharding
from prompt_tuning.evaluation import predictions
from prompt_tuning.evaluation.predict import PREDICTORS
from prompt_tuning.evaluation.scores import majority, predict
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.evaluation.validation import Metrics
from prompt_tuning.methods.base import Method
from prompt_tuning.model import summary
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runs import checks, loading
from prompt_tuning.runs.as_trained import as_trained
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config


def evaluate(
    *,
    output_dir: str,
    config: Config,
    method: Method,
    layout: Layout,
    data: Data,
    initial_checkpoint: str,
    trained_file: str = "",
    allow_other_backbone: bool = False,
    allow_other_settings: bool = False,
    split: str = "test",
    eval_methods: Sequence[str] = ("rank",),
    seed: int = 0,
    on_start: Callable[[epath.Path], object] = lambda folder: None,
) -> dict[str, Metrics]:
    """Measures a tuned model.

    The trained leaves come from `trained_file`, or else from the method's initialiser, which may
    read a prompt file; the file's card decides on lengths and sentinel (`as_trained`).

    Writes the files of `predictions.write` for each task of a mixture, and the parameter counts,
    `parameters.json`.

    Args:
      output_dir: Folder to write to.
      config, method, data, initial_checkpoint, eval_methods, layout, seed: See
        `runs.train.train`.
      trained_file: A run's `trained_best.safetensors`; "" if the method reads a prompt file.
      allow_other_backbone: Whether the card of `trained_file` may name another backbone.
      allow_other_settings: Whether the file is used with the settings given here, whatever its card
        says.
      split: Split to measure on.
      on_start: Function called with the folder before anything is written.

    Returns:
      The metrics by task, named METHOD/METRIC.
    """
    folder = checks.output_folder("EVAL_OUTPUT_DIR", output_dir)
    sharding.check_batch_size(data.batch_size, layout)
    method, data = as_trained(method, data, trained_file, allow_other_settings)
    checks.split(split, data.splits)
    sets = data.eval_sets(split)
    checks.eval_methods(eval_methods, sets, "EVAL_METHODS")
    tuned = loading.load(
        config,
        method,
        data,
        layout,
        checkpoint=initial_checkpoint,
        seed=seed,
        trained_file=trained_file,
        allow_other_backbone=allow_other_backbone,
        allow_other_settings=allow_other_settings,
    )
    on_start(folder)
    for line in (note for eval_set in sets for note in eval_set.notes):
        print(line, flush=True)
    summary.write_parameters(folder, tuned.split)
    metrics = {s.task: _measured(tuned, s, eval_methods, data.batch_size, folder) for s in sets}
    for line in data.remarks():
        print(line)
    return metrics


def _measured(
    tuned: TunedModel, data: EvalSet, methods: Sequence[str], batch_size: int, folder: epath.Path
) -> Metrics:
    """Writes a task's predictions and metrics, and prints the metrics."""
    majority(data, methods)  # first: it shows metrics that are not numbers
    answers = predict(tuned, data, methods, batch_size)
    metrics = predictions.write(folder, data, answers)
    predictions.show(data, "this model", metrics, answers)
    for method in PREDICTORS.keys() - answers.keys():
        if (left := folder / f"{data.task}-{data.split}-{method}.jsonl").exists():
            print(f"{left}: is of an earlier evaluation")
    return metrics
