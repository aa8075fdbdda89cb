"""Predictions of a trained prompt, for texts that need no targets."""

from collections.abc import Callable

from etils import epath

from prompt_tuning import report, sharding
from prompt_tuning.evaluate import METHODS, methods_for
from prompt_tuning.methods.base import Method
from prompt_tuning.runs import checks, model, predictions
from prompt_tuning.runs.data import Data
from prompt_tuning.t5.config import T5Config


def infer(
    *,
    output_dir: str,
    config: T5Config,
    method: Method,
    data: Data,
    initial_checkpoint: str,
    trained_file: str = "",
    split: str = "test",
    mode: str = "generate",
    num_partitions: int = 1,
    seed: int = 0,
    on_start: Callable[[epath.Path], None] = lambda folder: None,
    dry_run: bool = False,
) -> epath.Path | None:
    """Writes `TASK-MODE.jsonl`: a line {"inputs": {"inputs_pretokenized"}, "prediction"} a text
    (T5X's form), with "scores" by label for rank classification.

    Args:
      output_dir: where to write.
      config, method, data, initial_checkpoint, num_partitions, seed: see `runs.train.train`.
      trained_file, split: see `runs.eval.evaluate`.
      mode: of `evaluate.METHODS`, or "auto".
      on_start: called with the folder before anything is written.
      dry_run: print parameters and shardings, allocate and write nothing.

    Returns:
      The file written.
    """
    mesh = sharding.make_mesh(num_partitions)
    if dry_run:
        print(report.plan(config, method, mesh))
        return None
    folder = checks.output_folder("INFER_OUTPUT_DIR", output_dir)
    sharding.check_batch_size(data.batch_size, mesh)
    texts = data.eval_set(split)
    checks.eval_methods([mode], [texts], "MODE")
    [mode] = methods_for(texts, [mode])
    tuned = model.load(
        config,
        method,
        data,
        mesh,
        checkpoint=initial_checkpoint,
        seed=seed,
        trained_file=trained_file,
    )
    found = METHODS[mode](tuned, texts, data.batch_size)
    on_start(folder)
    path = folder / f"{texts.task}-{mode}.jsonl"
    lines = ({"inputs": {"inputs_pretokenized": text}} for text in texts.inputs)
    predictions.write(path, lines, found, texts.labels)
    print(f"{len(texts.inputs)} predictions in {path}")
    for line in data.remarks():
        print(line)
    return path
