"""Carries a trained prompt over to another backbone.

Lester et al., 2022 (arXiv 2208.05577): two backbones with one vocabulary embed the same tokens, so
a map from one embedding table to the other also maps prompts. It needs neither training of the
target nor task data. In each method `source` [N, D] and `target` [N, D'] embed the same N tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import numpy as np
import optax

from prompt_tuning.checkpoint import backbone, card, prompts
from prompt_tuning.errors import UserError
from prompt_tuning.transformer.paths import EMBEDDING, Params

# The tokens and the network of the original code's recycling/run_recycle.py, which first reduces
# its list of tokens to English ones.
SKIP, TOKENS = 1_000, 4_000
EXPANSION, BATCH = 4, 50
EPOCHS, LEARNING_RATE = 25, 3e-4


def linear_least_squares(prompt: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The prompt [P, D] times the Y [D, D'] that brings `source @ Y` closest to `target`."""
    return prompt @ np.linalg.lstsq(source, target)[0]


def linear_combination(prompt: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Writes the prompt's vectors [P, D] as sums of source embeddings, and sums the target's.

    Of all such sums, the one with the smallest weights is used. In exact arithmetic the result
    equals that of `linear_least_squares`: both are P pinv(source) target.
    """
    weights = np.linalg.lstsq(source.T, prompt.T)[0]
    return weights.T @ target


def mlp(
    prompt: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    *,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> np.ndarray:
    """Passes the prompt [P, D] through a two-layer network trained to map `source` to `target`.

    The hidden layer has width `EXPANSION` times D' and ReLU; Adam minimises the mean squared error.
    """
    width, size = target.shape[1], min(BATCH, len(source))
    network = nn.Sequential([nn.Dense(EXPANSION * width), nn.relu, nn.Dense(width)])
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def trained(source: jax.Array, target: jax.Array, keys: jax.Array) -> Params:
        def loss(params: Params, rows: jax.Array) -> jax.Array:
            return optax.l2_loss(network.apply(params, source[rows]), target[rows]).mean()

        def step(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            order = jax.random.permutation(key, len(source))
            batches = order[: len(source) // size * size].reshape(-1, size)
            return jax.lax.scan(step, carry, batches)

        params = network.init(keys[0], source[:1])
        return jax.lax.scan(epoch, (params, optimizer.init(params)), keys[1:])[0][0]

    params = trained(source, target, jax.random.split(jax.random.key(seed), epochs + 1))
    return np.asarray(network.apply(params, prompt))


MAPPINGS: Mapping[str, Callable[..., np.ndarray]] = {
    "linear_least_squares": linear_least_squares,
    "linear_combination": linear_combination,
    "mlp": mlp,
}


def recycle(
    prompt_file: str,
    source: str,
    target: str,
    output: str,
    method: str = "linear_least_squares",
    *,
    skip: int = SKIP,
    tokens: int = TOKENS,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> str:
    """Writes a prompt, trained on one backbone, for another one.

    Args:
      prompt_file: trained prompt.
      source: checkpoint of the backbone that it was trained on.
      target: checkpoint of the other backbone.
      output: prompt file to write.
      method: one of `MAPPINGS`.
      skip: tokens to leave out at the beginning of the vocabulary.
      tokens: tokens after those to fit the map on.
      epochs, learning_rate, seed: training of `mlp`.

    Returns:
      What was done, in one line, or two where the embedding tables differ in length.

    Raises:
      CheckpointError: if a file cannot be read.
      UserError: if prompt and source differ in width, a table has too few rows, or `mlp` diverges.
    """
    prompt, source_table = prompts.load(prompt_file), embedding(source)
    trained = card.read(prompt_file)
    card.warn_of_backbone(trained, prompt_file, source, "--source")
    if prompt.shape[1] != source_table.shape[1]:
        raise UserError(
            f"{prompt_file}: the prompt is {prompt.shape[1]} wide, {source} "
            f"{source_table.shape[1]}; give the backbone that it was trained on as --source"
        )
    target_table = embedding(target)
    rows = fitting_rows(source_table, target_table, skip, tokens)
    training = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed}
    recycled = MAPPINGS[method](prompt, *rows, **(training if method == "mlp" else {}))
    if not np.isfinite(recycled).all():
        raise UserError(f"--learning_rate={learning_rate}: mlp diverges; lower it")
    prompts.save(output, recycled)
    # The target's fingerprint would need all of its leaves; the rest is as in training.
    card.save(
        output,
        trained
        and dataclasses.replace(
            trained,
            backbone=target,
            fingerprint="",
            d_model=recycled.shape[1],
            metric={},
            trained_with=trained.trained_with
            and dataclasses.replace(trained.trained_with, vocabulary="", model={}),
        ),
        recycled,
    )
    sizes = len(source_table), len(target_table)
    remark = "{} and {} rows of embeddings: the first ones are taken as common\n".format(*sizes)
    return (remark if sizes[0] != sizes[1] else "") + (
        f"{output}: {recycled.shape[0]} vectors, {recycled.shape[1]} wide, by {method} "
        f"over tokens {skip} to {skip + tokens - 1}"
    )


def fitting_rows(
    source: np.ndarray, target: np.ndarray, skip: int, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows `skip` to `skip + tokens` of both tables [V, D] and [V', D'], as float64.

    Raises:
      UserError: if a table has fewer rows.
    """
    common = min(len(source), len(target))
    if skip + tokens > common:
        raise UserError(
            f"--skip={skip} --tokens={tokens}: the backbones have {common} rows of embeddings in "
            "common; lower one or both"
        )
    rows = slice(skip, skip + tokens)
    return source[rows].astype(np.float64), target[rows].astype(np.float64)


def embedding(checkpoint: str) -> np.ndarray:
    """Reads a backbone's embeddings [V, D], float32.

    Raises:
      CheckpointError: if the checkpoint cannot be read or has none.
      UserError: if a value is not finite.
    """
    table = backbone.load_leaf(checkpoint, EMBEDDING)
    if not np.isfinite(table).all():
        raise UserError(
            f"{checkpoint}: {EMBEDDING} has values that are not finite; copy the checkpoint again"
        )
    return table
