"""The step function that decoding calls, and the result that it returns."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

NOTHING = float("-inf")  # the score of a place without a sequence

# From tokens [B] and a cache to the next token's logits [B, V] float32 and the next cache. The
# first call gets tokens 0 and may return a cache of another structure.
StepFn = Callable[[Array, Any], tuple[Array, Any]]


class Decoded(flax.struct.PyTreeNode):
    """Decoded sequences and their scores.

    Attributes:
      tokens: [B, L] int32, or [B, K, L] from beam search; 0 after the end of a sequence.
      scores: [B] float32, the sum of log p over the tokens, including the stop token; from beam
        search [B, K], divided by the length penalty.
      log_p: [B, L] float32, of each token; 0 after the end. None from beam search.
      top_tokens: [B, L, A] int32, the most likely tokens of each step, if they are asked for.
      top_log_p: [B, L, A] float32, their log p.
    """

    tokens: Array
    scores: Array
    log_p: Array | None = None
    top_tokens: Array | None = None
    top_log_p: Array | None = None


def is_stop(
    tokens: Int[Array, "batch ..."],
    stops: Int[Array, " stops"] | Int[Array, "batch stops"],
) -> Bool[Array, "batch ..."]:
    """Whether each of tokens [B, ...] is one of its row's stop tokens, [S] or [B, S]."""
    stops = jnp.broadcast_to(stops, (tokens.shape[0], stops.shape[-1]))
    stops = stops.reshape(stops.shape[0], *(1,) * (tokens.ndim - 1), -1)
    return jnp.any(tokens[..., None] == stops, axis=-1)
