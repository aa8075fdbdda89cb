"""What the decoding loops ask of a model, and what they return."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax import Array

NOTHING = float("-inf")  # the score of a place that no sequence takes

# Tokens [B] and a cache to the next token's logits [B, V] float32 and the cache after it. The first
# call gets tokens 0, and may return a cache of another structure.
StepFn = Callable[[Array, Any], tuple[Array, Any]]


class Decoded(flax.struct.PyTreeNode):
    """What was decoded.

    Attributes:
      tokens: [B, L] int32, of beam search [B, K, L]; 0 behind a row's end.
      scores: [B] float32, the sum of log p of the tokens with the stop token; of beam search
        [B, K], over the length penalty.
    """

    tokens: Array
    scores: Array


def is_stop(tokens: Array, stops: Array) -> Array:
    """Whether each of tokens [B, ...] is one of its row's stops, [S] or [B, S]."""
    stops = jnp.broadcast_to(stops, (tokens.shape[0], stops.shape[-1]))
    stops = stops.reshape(stops.shape[0], *(1,) * (tokens.ndim - 1), -1)
    return jnp.any(tokens[..., None] == stops, axis=-1)
