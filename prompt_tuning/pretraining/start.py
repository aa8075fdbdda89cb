"""Token embedding and output layer that start from the teacher's vectors of the pieces.

Copying an option by its meaning is learnt within 1,000 steps from this start, and not at all from
a random one (docs/backbone.md).
"""

import dataclasses

import numpy as np

from prompt_tuning import sharding
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.pretraining.table import Table
from prompt_tuning.transformer.paths import flatten, unflatten

EMBEDDING, OUTPUT = "token_embedder/embedding", "decoder/logits_dense/kernel"
RANDOM_PART = 0.3  # of the random values, which stay below the teacher's
SPREAD = 0.7  # exponent of the singular values: below 1, so that the first few do not rule


def from_teacher(tuned: TunedModel, table: Table) -> TunedModel:
    """`tuned` with the teacher's pieces in its embedding and, transposed, its output layer.

    Args:
      tuned: Model whose leaves are all trained, at random values, with an output layer of its
        own.
      table: Table with a row for each piece of the model's vocabulary.
    """
    leaves = flatten(tuned.trained)
    embedding = np.array(leaves[EMBEDDING])
    reduced = reduce(table.piece_vectors, embedding.shape[1])
    rows, width = reduced.shape
    embedding[:rows, :width] = RANDOM_PART * embedding[:rows, :width] + reduced
    directions = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    output = RANDOM_PART * np.array(leaves[OUTPUT]) + directions.T
    for path, value in ((EMBEDDING, embedding), (OUTPUT, output)):
        leaves[path] = sharding.place(value.astype(np.float32), leaves[path].sharding)
    return dataclasses.replace(tuned, trained=unflatten(leaves))


def reduce(vectors: np.ndarray, width: int) -> np.ndarray:
    """Principal components [n, min(width, d)] of vectors [n, d], of standard deviation 1."""
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    kept = min(width, left.shape[1])
    reduced = left[:, :kept] * values[:kept] ** SPREAD
    return reduced / reduced.std()
