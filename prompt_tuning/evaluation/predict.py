"""Predictions of a tuned model: by rank classification over the labels, or by generation."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from prompt_tuning import decoding, sharding
from prompt_tuning.checkpoint import card, trained_data
from prompt_tuning.decoding import batches
from prompt_tuning.decoding.step import Decoded
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.transformer.network import EncoderDecoder
from prompt_tuning.transformer.paths import Params, join
from prompt_tuning.transformer.vocabulary import SENTINEL, check_ids


def rank_labels(tuned: TunedModel, data: EvalSet, batch_size: int) -> Predictions:
    """Predicts the label with the highest log-probability.

    Raises:
      ValueError: if the task has no labels.
    """
    if not data.labels:
        raise ValueError(f"{data.task}: rank classification needs CLASS_LABELS")
    width = batches.power(int(np.count_nonzero(data.label_tokens, axis=1).max()))
    most_bytes = decoding.rank_bytes(data.rank_memory_gib, tuned.layout.row_shards)
    rank = functools.partial(_rank, most_bytes=most_bytes)
    scores = _map(rank, tuned, data, batch_size, data.label_tokens[:, :width])
    return Predictions([data.labels[i] for i in scores.argmax(axis=1)], scores)


def generate(tuned: TunedModel, data: EvalSet, batch_size: int) -> Predictions:
    """Predicts the greedily decoded text."""
    tokens = _map(_generate, tuned, data, batch_size, data.target_length).tokens
    return Predictions([data.decode(row.tolist()) for row in tokens])


PREDICTORS: Mapping[str, Callable[[TunedModel, EvalSet, int], Predictions]] = {
    "rank": rank_labels,
    "generate": generate,
}


AUTO = "auto"


def predictors_for(data: EvalSet, names: Sequence[str]) -> list[str]:
    """Resolves "auto" among `names`: "rank" for a task with label words, otherwise "generate".

    Raises:
      UserError: Unless `names` is a list of names of `PREDICTORS` or "auto".
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f"methods = {names!r}: must be a list, such as ['rank']")
    if unknown := [name for name in names if name not in (*PREDICTORS, AUTO)]:
        known = ", ".join((*PREDICTORS, AUTO))
        raise UserError(f"methods has {unknown[0]!r}; available: {known}")
    default = "rank" if data.labels else "generate"
    return list(dict.fromkeys(default if name == AUTO else name for name in names))


def check_as_trained(tuned: TunedModel, data: EvalSet) -> None:
    """Checks that data agree with what is known of a model's training.

    Raises:
      UserError: If the training had another target prefix, the same text fields in another order,
        or the labels in another order and the data's files number them.
      CheckpointError: If it had another vocabulary.
    """
    training, where = tuned.trained_with, "the model"
    prefix = training.target_prefix if training else _prefix(tuned.first_tokens, data)
    if prefix not in (None, data.target_prefix):
        raise UserError(
            f"{data.task}: {where} was trained with the target prefix {prefix!r}, and these data "
            f"have {data.target_prefix!r}; open them with sentinel_targets={prefix == SENTINEL}"
        )
    if training is None:
        return
    card.check_model(training, where, vocabulary=data.vocabulary)
    numbered = {data.task: data.labels}
    trained_data.check_labels(
        data.labels, training.labels, where, lambda: numbered if data.labels_by_number() else {}
    )
    fields = {data.task: data.text_fields} if data.text_fields else {}
    trained_data.check_text_fields(fields, training.text_fields, where)


def _prefix(first_tokens: Collection[int], data: EvalSet) -> str | None:
    """The prefix of targets that begin with these tokens; None if there are none."""
    if not first_tokens:
        return None
    texts = {data.decode([token]).strip() for token in first_tokens}
    if data.target_prefix:  # which `decode` leaves out
        return data.target_prefix if texts == {""} else ""
    return SENTINEL if texts == {SENTINEL} else ""


@functools.partial(jax.jit, static_argnames=("model", "most_bytes"))
def _rank(
    model: EncoderDecoder,
    trained: Params,
    frozen: Params,
    tokens: Array,
    tasks: Array | None,
    targets: Array,
    most_bytes: float,
) -> Array:
    return decoding.score(model, join(trained, frozen), tokens, targets, tasks, most_bytes)


@functools.partial(jax.jit, static_argnames=("model", "length"))
def _generate(
    model: EncoderDecoder,
    trained: Params,
    frozen: Params,
    tokens: Array,
    tasks: Array | None,
    length: int,
) -> Decoded:
    step_fn, cache = decoding.start(model, join(trained, frozen), tokens, length, tasks)
    return decoding.decode(step_fn, cache, batch=tokens.shape[0], length=length)


def _map(
    function: Callable[..., Any],
    tuned: TunedModel,
    data: EvalSet,
    batch_size: int,
    argument: np.ndarray | int,
) -> Any:
    """Applies a jitted function to all inputs, in batches of `batch_size` rows.

    Raises:
      UserError: If its results are not finite numbers, or as `TunedModel.check_not_donated` and
        `check_as_trained`.
    """
    tuned.check_not_donated()
    check_as_trained(tuned, data)
    sharding.check_batch_size(batch_size, tuned.layout, "batch_size")
    for ids in (data.encoder_input_tokens, data.label_tokens):
        check_ids(ids, tuned.model.config.vocab_size)
    tokens, task = data.encoder_input_tokens, tuned.model.sites.task_index(data.task)
    tasks = None if task is None else np.full(len(tokens), task, np.int32)
    lengths = tokens.shape[1] - np.argmax(tokens[:, ::-1] != 0, axis=1)

    def run(tokens: Array, tasks: Array | None) -> Any:
        return function(tuned.model, tuned.trained, tuned.frozen, tokens, tasks, argument)

    results = batches.map_rows(
        run,
        [row[:length] for row, length in zip(tokens, lengths, strict=True)],
        tasks,
        layout=tuned.layout,
        batch_size=batch_size,
        fewest_rows=batch_size,
        longest=tokens.shape[1],
    )
    batches.check_finite(results, tuned.model, tuned.params, tuned.split.trained)
    return results
