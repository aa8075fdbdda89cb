"""Predictions of a tuned model for texts, with or without targets."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

from etils import epath

from prompt_tuning import sharding
from prompt_tuning.checkpoint import card, fingerprint
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import predictions
from prompt_tuning.evaluation.predict import PREDICTORS, predictors_for
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods.base import Method
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runs import checks, infer_tasks, loading
from prompt_tuning.runs.as_trained import as_trained
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.runs.infer_tasks import BATCHES_PER_WRITE
from prompt_tuning.runtime import distributed, resumable_lines
from prompt_tuning.runtime.files import is_remote
from prompt_tuning.serving.task_rows import TaskRows
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import flatten


def infer(
    *,
    output_dir: str,
    config: Config,
    method: Method,
    layout: Layout,
    data: Data | TaskRows,
    initial_checkpoint: str,
    trained_file: str = "",
    allow_other_backbone: bool = False,
    allow_other_settings: bool = False,
    split: str = "test",
    mode: str = "generate",
    seed: int = 0,
    on_start: Callable[[epath.Path], object] = lambda folder: None,
) -> epath.Path:
    """Writes `TASK-MODE.jsonl`, one line per text in T5X's form.

    A line is {"inputs": {"inputs_pretokenized": text, COLUMN: value, ...}, "prediction": text} with
    the other columns of the text's row, and "scores" by label for rank classification. For rows of
    several tasks see `infer_tasks`. An interrupted run resumes (`resumable_lines.write`).

    Args:
      output_dir: Folder to write to, on a local disk.
      config, method, data, initial_checkpoint, layout, seed: See `runs.train.train`.
      trained_file, allow_other_backbone, allow_other_settings, split: See `runs.eval.evaluate`.
      mode: "rank", "generate" or "auto".
      on_start: Function called with the folder before anything is written.

    Returns:
      The path of the written file.
    """
    folder = checks.output_folder("INFER_OUTPUT_DIR", output_dir)
    if is_remote(folder):
        raise UserError(f"INFER_OUTPUT_DIR = {output_dir!r}: must be on a local disk")
    sharding.check_batch_size(data.batch_size, layout)
    if isinstance(data, TaskRows):
        return infer_tasks.infer(
            data,
            folder,
            config=config,
            initial_checkpoint=initial_checkpoint,
            allow_other_backbone=allow_other_backbone,
            mode=mode,
            layout=layout,
            on_start=on_start,
        )
    method, data = as_trained(method, data, trained_file, allow_other_settings)
    texts = data.eval_set(split)
    checks.eval_methods([mode], [texts], "MODE")
    [mode] = predictors_for(texts, [mode])
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
    for line in texts.notes:
        print(line, flush=True)
    path = folder / f"{texts.task}-{mode}.jsonl"
    key = _key(tuned, texts, data.batch_size)

    def lines(start: int, stop: int) -> Iterator[dict[str, Any]]:
        part = _part(texts, start, stop)
        predicted = PREDICTORS[mode](tuned, part, data.batch_size)
        columns = part.columns or [{}] * len(part.inputs)
        examples = map(infer_tasks.example, part.inputs, columns)
        return predictions.lines(examples, predicted, texts.labels)

    resumable_lines.write(path, key, len(texts.inputs), BATCHES_PER_WRITE * data.batch_size, lines)
    print(f"{len(texts.inputs)} predictions in {path}")
    for line in data.remarks():
        print(line)
    return path


def _key(tuned: TunedModel, texts: EvalSet, batch_size: int) -> str:
    """Digest of all that determines the predictions for texts."""
    model, method = tuned.model, cast(Method, tuned.model.sites)
    trained = {path: distributed.to_host(leaf) for path, leaf in flatten(tuned.trained).items()}
    return resumable_lines.digest(
        texts.task,
        texts.inputs,
        texts.columns,
        texts.encoder_input_tokens.tolist(),
        texts.labels,
        texts.label_tokens.tolist(),
        texts.target_length,
        texts.target_prefix,
        texts.vocabulary,
        batch_size,
        model.config,
        type(method).__name__,
        method.settings,
        card.checksum_of(trained),  # a fingerprint rounds values
        fingerprint.of(tuned.params),
    )


def _part(texts: EvalSet, start: int, stop: int) -> EvalSet:
    return dataclasses.replace(
        texts,
        inputs=texts.inputs[start:stop],
        targets=texts.targets[start:stop],
        encoder_input_tokens=texts.encoder_input_tokens[start:stop],
        columns=texts.columns[start:stop],
    )
