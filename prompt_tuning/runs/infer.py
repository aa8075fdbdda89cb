"""Predictions of a trained prompt, for texts that need no targets."""

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from prompt_tuning import report, sharding
from prompt_tuning.checkpoint.files import renamed_when_done
from prompt_tuning.checkpoint.trained import with_trained
from prompt_tuning.evaluate import METHODS
from prompt_tuning.methods.base import Method
from prompt_tuning.runs.train import Data, check_methods
from prompt_tuning.t5.config import T5Config
from prompt_tuning.trainer import initialize


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
      mode: of `evaluate.METHODS`.
      on_start: called with the folder before anything is written.
      dry_run: print parameters and shardings, allocate and write nothing.

    Returns:
      The file written.
    """
    mesh = sharding.make_mesh(num_partitions)
    if dry_run:
        print(report.plan(config, method, mesh))
        return None
    sharding.check_batch_size(data.batch_size, mesh)
    check_methods([mode], data)
    texts = data.eval_set(split)
    tuned = initialize(
        config,
        method,
        mesh=mesh,
        seed=seed,
        checkpoint=initial_checkpoint,
        encode=data.encode,
        labels=data.labels,
    )
    if trained_file:
        tuned = with_trained(tuned, trained_file)
    predictions = METHODS[mode](tuned, texts, data.batch_size)
    folder = epath.Path(output_dir)
    on_start(folder)
    path = folder / f"{texts.task}-{mode}.jsonl"
    with renamed_when_done(path) as temporary, temporary.open("w") as file:
        for i, (text, prediction) in enumerate(zip(texts.inputs, predictions.texts, strict=True)):
            line: dict[str, Any] = {
                "inputs": {"inputs_pretokenized": text},
                "prediction": prediction,
            }
            if predictions.scores is not None:
                scores = predictions.scores[i].tolist()
                line["scores"] = dict(zip(texts.labels, scores, strict=True))
            file.write(json.dumps(line) + "\n")
    print(f"{len(texts.inputs)} predictions in {path}")
    return path
