"""Evaluation of a trained prompt (or other trained leaves) on a split of a task."""

from collections.abc import Callable, Sequence

from etils import epath

from prompt_tuning import sharding
from prompt_tuning.evaluation import predictions, table
from prompt_tuning.evaluation.predict import PREDICTORS, predictors_for
from prompt_tuning.evaluation.scores import majority, most_frequent_name
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.evaluation.validation import Metrics
from prompt_tuning.methods.base import Method
from prompt_tuning.model import summary
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runs import checks, loading
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import T5Config


def evaluate(
    *,
    output_dir: str,
    config: T5Config,
    method: Method,
    layout: Layout,
    data: Data,
    initial_checkpoint: str,
    trained_file: str = "",
    allow_other_backbone: bool = False,
    split: str = "test",
    eval_methods: Sequence[str] = ("rank",),
    seed: int = 0,
    on_start: Callable[[epath.Path], object] = lambda folder: None,
) -> dict[str, Metrics]:
    """Measures a tuned model; the prompt comes from the method's initialiser (a prompt file) or,
    with every other trained leaf, from `trained_file`.

    Writes `predictions.write`'s files, of a mixture for each of its tasks, and `parameters.json`:
    how many the model has.

    Args:
      output_dir: where to write.
      config, method, data, initial_checkpoint, eval_methods, layout, seed: see
        `runs.train.train`.
      trained_file: a run's `trained_best.safetensors`; "" where the prompt file is enough.
      allow_other_backbone: take a `trained_file` whose card names another backbone.
      split: which one.
      on_start: called with the folder before anything is written.

    Returns:
      The metrics by task, named METHOD/METRIC.
    """
    folder = checks.output_folder("EVAL_OUTPUT_DIR", output_dir)
    sharding.check_batch_size(data.batch_size, layout)
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
    )
    on_start(folder)
    summary.write_parameters(folder, tuned.split)
    found = {one.task: _measured(tuned, one, eval_methods, data.batch_size, folder) for one in sets}
    for line in data.remarks():
        print(line)
    return found


def _measured(
    tuned: TunedModel, data: EvalSet, methods: Sequence[str], batch_size: int, folder: epath.Path
) -> Metrics:
    """Writes a task's predictions and metrics, and prints the metrics."""
    found = {
        kind: PREDICTORS[kind](tuned, data, batch_size) for kind in predictors_for(data, methods)
    }
    metrics = predictions.write(folder, data, found)
    base = majority(data, methods)
    print(f"{data.task}, {data.split} split, {len(data.targets)} examples:")
    print(table.table({most_frequent_name(data): base, "this model": metrics}))
    return metrics
