"""Scores a tuned model on a task: by rank classification over the labels, or by generation."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax import Array

from prompt_tuning import decoding, sharding
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runtime import distributed
from prompt_tuning.t5.network import T5
from prompt_tuning.t5.paths import Params, join


def rank_labels(tuned: TunedModel, data: EvalSet, batch_size: int) -> Predictions:
    """Predicts the label of highest log-probability.

    Raises:
      ValueError: if the task has no labels.
    """
    if not data.labels:
        raise ValueError(f"{data.task}: rank classification needs CLASS_LABELS")
    scores = _map(_rank, tuned, data, batch_size, data.label_tokens)
    return Predictions([data.labels[i] for i in scores.argmax(axis=1)], scores)


def generate(tuned: TunedModel, data: EvalSet, batch_size: int) -> Predictions:
    """Predicts the greedily decoded text."""
    tokens = _map(_generate, tuned, data, batch_size, data.target_length)
    return Predictions([data.decode(row.tolist()) for row in tokens])


PREDICTORS: Mapping[str, Callable[[TunedModel, EvalSet, int], Predictions]] = {
    "rank": rank_labels,
    "generate": generate,
}


AUTO = "auto"


def predictors_for(data: EvalSet, names: Sequence[str]) -> list[str]:
    """`names` with "auto" as what it means for the task: "rank" if it has label words, else
    "generate".
    """
    meant = "rank" if data.labels else "generate"
    return list(dict.fromkeys(meant if name == AUTO else name for name in names))


@functools.partial(jax.jit, static_argnames=("model",))
def _rank(
    model: T5,
    trained: Params,
    frozen: Params,
    tokens: Array,
    tasks: Array | None,
    targets: Array,
) -> Array:
    return decoding.score(model, join(trained, frozen), tokens, targets, tasks)


@functools.partial(jax.jit, static_argnames=("model", "length"))
def _generate(
    model: T5, trained: Params, frozen: Params, tokens: Array, tasks: Array | None, length: int
) -> Array:
    return decoding.greedy(model, join(trained, frozen), tokens, length, tasks)


def _map(
    function: Callable[..., Array],
    tuned: TunedModel,
    data: EvalSet,
    batch_size: int,
    argument: np.ndarray | int,
) -> np.ndarray:
    """Applies a jitted function to batches of inputs of similar length and puts the rows of the
    results in the order of the inputs.

    A batch is as long as the power of two that holds its longest row, from 32 to T: each shape is
    compiled once.
    """
    tokens, task = data.encoder_input_tokens, tuned.model.sites.task_index(data.task)
    tasks = None if task is None else np.full(batch_size, task, np.int32)
    limit = tokens.shape[1]
    lengths = limit - np.argmax(tokens[:, ::-1] != 0, axis=1)
    order = np.argsort(-lengths, kind="stable")  # what does not fit into memory fails at once
    results = []
    with sharding.on(tuned.layout):
        for start in range(0, len(tokens), batch_size):
            rows = order[start : start + batch_size]
            longest = int(lengths[rows[0]])
            batch = tokens[rows, : min(limit, max(32, 1 << (longest - 1).bit_length()))]
            batch = np.pad(batch, ((0, batch_size - len(rows)), (0, 0)))
            placed = sharding.put_batch({"tokens": batch}, tuned.layout)["tokens"]
            model = tuned.model, tuned.trained, tuned.frozen
            results.append(function(*model, placed, tasks, argument))
    found = np.concatenate([distributed.to_host(rows) for rows in results])[: len(tokens)]
    return found[np.argsort(order)]
