"""An ensemble: several prompts of one task on one frozen backbone, which vote on each row."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.errors import UserError, true_or_false
from prompt_tuning.evaluation import predictions
from prompt_tuning.evaluation.predict import predictors_for
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.evaluation.validation import Metrics
from prompt_tuning.runs import checks
from prompt_tuning.runs.as_trained import check_data
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.serving import model as serving
from prompt_tuning.serving import prompt_folder
from prompt_tuning.serving.texts import encoded
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.vocabulary import Vocabulary


def evaluate(
    *,
    output_dir: str,
    config: Config,
    layout: Layout,
    data: Data,
    vocabulary: Any,
    initial_checkpoint: str,
    prompt_files: Sequence[str],
    allow_other_backbone: bool = False,
    allow_other_settings: bool = False,
    split: str = "test",
    on_start: Callable[[epath.Path], object] = lambda folder: None,
) -> dict[str, Metrics]:
    """Measures the majority vote of several prompts (Lester et al., 2021, section 6).

    The prompts answer in one batch (`serving.bank`), with a label word if the task has label words,
    else with generated text. Writes the files of `predictions.write`.

    Args:
      output_dir, split, on_start: See `runs.eval.evaluate`.
      config, layout, data, initial_checkpoint: See `runs.train.train`.
      vocabulary: Vocabulary of the model, see `serving.load`.
      prompt_files: Paths of the prompts, see `serving.prompt_folder.read`.
      allow_other_backbone: Whether a prompt's card may name another backbone.
      allow_other_settings: Whether the prompts are used with the settings given here, whatever
        tasks, lengths and sentinel their cards say.

    Returns:
      The metrics by task, named METHOD/METRIC.
    """
    folder = checks.output_folder("EVAL_OUTPUT_DIR", output_dir)
    if not prompt_files:
        raise UserError("PROMPT_FILES is empty; list the prompts that vote")
    checks.split(split, data.splits)
    if not true_or_false("ALLOW_OTHER_SETTINGS", allow_other_settings):
        data = _as_trained(data, prompt_files)
    eval_sets = data.eval_sets(split)
    model = serving.load(
        config,
        initial_checkpoint,
        vocabulary,
        layout=layout,
        batch_size=data.batch_size,
        input_length=eval_sets[0].encoder_input_tokens.shape[1],
        tasks=len(prompt_files),
        allow_other_backbone=allow_other_backbone,
        rank_memory_gib=eval_sets[0].rank_memory_gib,
    )
    of_backbone = None if allow_other_backbone else lambda: model.fingerprint
    for eval_set in eval_sets:
        prefix: str | None = eval_set.target_prefix
        prompts: list[Any] = list(prompt_files)
        if allow_other_settings:  # arrays have no cards
            prompts = [prompt_folder.read(path, of_backbone) for path in prompt_files]
        else:
            prefix = prefix or None  # that of the cards
        model.add_task(eval_set.task, prompt=prompts, labels=eval_set.labels, target_prefix=prefix)
    on_start(folder)
    for line in (note for eval_set in eval_sets for note in eval_set.notes):
        print(line, flush=True)
    return {eval_set.task: _measured(model, eval_set, folder) for eval_set in eval_sets}


def _as_trained(data: Data, prompt_files: Sequence[str]) -> Data:
    """The data with the input length of the prompts' cards if that is not the longer one.

    Raises:
      UserError: As `prompt_folder.trained_with` and `check_data`.
    """
    training = prompt_folder.trained_with(prompt_files, "PROMPT_FILES")
    if training is None:
        return data
    check_data(data, training, str(prompt_files[0]))
    length = training.lengths.get("inputs")
    # A longer one is refused where the prompt is added.
    if length is None or length > data.lengths["inputs"]:
        return data
    return data.as_trained({**data.lengths, "inputs": length}, data.target_prefix)


def _measured(model: serving.Model, data: EvalSet, folder: epath.Path) -> Metrics:
    _check_inputs(model, data)
    [kind] = predictors_for(data, ["auto"])
    if kind == "rank":
        texts = [answer.label for answer in model.classify(data.inputs, data.task)]
    else:
        generations = model.generate(data.inputs, data.task, max_tokens=data.target_length)
        texts = [generation.text for generation in generations]
    answers = {kind: Predictions(texts)}
    metrics = predictions.write(folder, data, answers)
    predictions.show(data, f"{len(model.prompts(data.task))} prompts", metrics, answers)
    return metrics


def _check_inputs(model: serving.Model, data: EvalSet) -> None:
    """Raises UserError for inputs that are not the tokens of their texts, from which votes come."""
    length = data.encoder_input_tokens.shape[1]
    for i, text in enumerate(data.inputs):
        ids = encoded(model.vocabulary, text, length).ids
        tokens = np.trim_zeros(data.encoder_input_tokens[i], "b").tolist()
        if tokens != ids and not _are_tied(model.vocabulary, tokens, ids):
            raise UserError(
                f"{data.task}: its input {i + 1}, {text[:50]!r}, is not the tokens of this text "
                "and an end token, as prompts that vote read it (add_eos=False, or a preprocessor "
                "after `tokenize`); evaluate each prompt by itself"
            )


def _are_tied(vocabulary: Vocabulary, tokens: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether these are the same pieces of the same text in another order.

    Five dots may be `..` and `...` or `...` and `..`, which are equally likely, and SentencePiece
    in TensorFlow, by which SeqIO reads data, does not take the same as in Python.
    """
    return sorted(tokens) == sorted(ids) and vocabulary.decode(tokens) == vocabulary.decode(ids)
