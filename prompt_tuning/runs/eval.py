"""Evaluation of a trained prompt (or other trained leaves) on a split of a task."""

from collections.abc import Callable, Mapping, Sequence

from etils import epath

from prompt_tuning import report, sharding
from prompt_tuning.evaluate import METHODS, majority, measure
from prompt_tuning.methods.base import Method
from prompt_tuning.runs import checks, model, predictions
from prompt_tuning.runs.data import Data
from prompt_tuning.t5.config import T5Config


def evaluate(
    *,
    output_dir: str,
    config: T5Config,
    method: Method,
    data: Data,
    initial_checkpoint: str,
    trained_file: str = "",
    split: str = "test",
    eval_methods: Sequence[str] = ("rank",),
    num_partitions: int = 1,
    seed: int = 0,
    on_start: Callable[[epath.Path], None] = lambda folder: None,
    dry_run: bool = False,
) -> Mapping[str, float]:
    """Measures a tuned model; the prompt comes from the method's initialiser (a prompt file) or,
    with every other trained leaf, from `trained_file`.

    Writes `TASK-SPLIT-metrics.json` and, for each evaluation method, `TASK-SPLIT-METHOD.jsonl`
    with a line {"input", "target", "prediction"} an example.

    Args:
      output_dir: where to write.
      config, method, data, initial_checkpoint, eval_methods, num_partitions, seed: see
        `runs.train.train`.
      trained_file: a run's `trained_best.safetensors`; "" where the prompt file is enough.
      split: which one.
      on_start: called with the folder before anything is written.
      dry_run: print parameters and shardings, allocate and write nothing.

    Returns:
      The metrics, named METHOD/METRIC.
    """
    mesh = sharding.make_mesh(num_partitions)
    if dry_run:
        print(report.plan(config, method, mesh))
        return {}
    folder = checks.output_folder("EVAL_OUTPUT_DIR", output_dir)
    sharding.check_batch_size(data.batch_size, mesh)
    checks.eval_methods(eval_methods, data.labels, "EVAL_METHODS")
    checks.split(split, data.splits)
    examples = data.eval_set(split)
    tuned = model.load(
        config,
        method,
        data,
        mesh,
        checkpoint=initial_checkpoint,
        seed=seed,
        trained_file=trained_file,
    )
    on_start(folder)
    name = f"{examples.task}-{split}"
    metrics: dict[str, float] = {}
    base: dict[str, float] = {}
    for kind in eval_methods:
        found = METHODS[kind](tuned, examples, data.batch_size)
        texts = zip(examples.inputs, examples.targets, strict=True)
        lines = ({"input": text, "target": target} for text, target in texts)
        predictions.write(folder / f"{name}-{kind}.jsonl", lines, found, examples.labels)
        for metric, value in measure(examples, found).items():
            metrics[f"{kind}/{metric}"] = value
        for metric, value in measure(examples, majority(examples)).items():
            base[f"{kind}/{metric}"] = value
    report.write_json(folder / f"{name}-metrics.json", metrics)
    print(f"{examples.task}, {split} split, {len(examples.targets)} examples:")
    print(report.table({"majority class": base, "this model": metrics}))
    return metrics
