"""python -m prompt_tuning.recycle: carries a trained prompt over to another backbone.

Lester et al., 2022 (arXiv 2208.05577): two backbones with one vocabulary embed the same tokens, so
what takes one table of embeddings to the other also takes prompts there. No training of the target,
and no task's data. In each method `source` [N, D] and `target` [N, D'] embed the same N tokens.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompt_tuning.checkpoint import backbone
from prompt_tuning.errors import UserError
from prompt_tuning.t5.network import EMBEDDING
from prompt_tuning.t5.paths import Params

# The tokens and the network of the original code's recycling/run_recycle.py. Its list of tokens is
# cut down to English ones first.
SKIP, TOKENS = 1_000, 4_000


EXPANSION, BATCH = 4, 50


EPOCHS, LEARNING_RATE = 25, 3e-4


def linear_least_squares(prompt: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The prompt [P, D] times the Y [D, D'] that makes `source @ Y` nearest to `target`."""
    return prompt @ np.linalg.lstsq(source, target)[0]


def linear_combination(prompt: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The prompt's vectors [P, D] as sums of source embeddings, with the target's in their place.

    Of the many such sums that with the smallest weights is taken. In exact arithmetic the result
    then is that of `linear_least_squares`: both are P pinv(source) target.
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
    """The prompt [P, D] through a two-layer network that was trained from `source` to `target`.

    The hidden layer is `EXPANSION` times D' wide, with ReLU; Adam on the mean squared error.
    """
    width, size = target.shape[1], min(BATCH, len(source))
    network = nn.Sequential([nn.Dense(EXPANSION * width), nn.relu, nn.Dense(width)])
    optimizer = optax.adam(learning_rate)
    init_key, *keys = jax.random.split(jax.random.key(seed), epochs + 1)

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

        params = network.init(init_key, source[:1])
        return jax.lax.scan(epoch, (params, optimizer.init(params)), keys)[0][0]

    params = trained(source, target, jnp.stack(keys))
    return np.asarray(network.apply(params, prompt))


MAPPINGS: Mapping[str, Callable[..., np.ndarray]] = {
    "linear_least_squares": linear_least_squares,
    "linear_combination": linear_combination,
    "mlp": mlp,
}


def fitting_rows(
    source: np.ndarray, target: np.ndarray, skip: int, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows `skip` to `skip + tokens` of both tables [V, D] and [V', D'], as float64.

    Raises:
      UserError: if one table ends before.
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
    """A backbone's embeddings [V, D], float32.

    Raises:
      CheckpointError: if it cannot be read or has none.
      UserError: if they are not finite.
    """
    table = backbone.load_leaf(checkpoint, EMBEDDING)
    if not np.isfinite(table).all():
        raise UserError(f"{checkpoint}: {EMBEDDING} is not finite; copy the checkpoint again")
    return table
