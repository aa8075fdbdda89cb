"""Greedy decoding and sampling: one token a row and step, each row to its own end."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.decoding.step import NOTHING, Decoded, StepFn, is_stop
from prompt_tuning.t5.vocabulary import EOS


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What of the next token's distribution is drawn from; applied in the order of the attributes.

    Attributes:
      temperature: divides the logits.
      top_k: only so many most likely tokens (and those that tie with the last); 0 for all.
      top_p: of these, the fewest most likely that together have this probability (Holtzman et al.,
        2020).

    Raises:
      ValueError: naming the setting, if it is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature = {self.temperature}: must be above 0")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: must be 0, for all tokens, or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p = {self.top_p}: must be above 0, at most 1")

    def filtered(self, logits: Array) -> Array:
        """Logits [..., V] of the distribution that is drawn from; -inf where it has nothing."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits < least, NOTHING, logits)
        if self.top_p < 1.0:
            falling = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
            probability = jax.nn.softmax(falling, axis=-1)
            before = jnp.cumsum(probability, axis=-1) - probability
            least = jnp.min(jnp.where(before < self.top_p, falling, jnp.inf), -1, keepdims=True)
            logits = jnp.where(logits < least, NOTHING, logits)
        return logits


def keys_of(seed: int | Array, rows: Sequence[int] | Array) -> Array:
    """A key for each row, by its number: its sample does not hang on the rows beside it."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(rows))


def decode(
    step_fn: StepFn,
    cache: Any,
    *,
    batch: int,
    length: int,
    draw: tuple[Sampling, Array] | None = None,
    limits: Array | None = None,
    stops: Array | Sequence[int] = (EOS,),
) -> Decoded:
    """Decodes token by token, until each row has ended.

    Args:
      step_fn: see `StepFn`.
      cache: its first.
      batch: rows, B.
      length: most tokens to make, L.
      draw: how tokens are drawn, and [B] random keys; None for the most likely token.
      limits: [B] int32, most tokens of each row; None for L.
      stops: [S] or [B, S] int32, tokens that end a row.

    Returns:
      tokens [B, L] and scores [B] under the model's own distribution.
    """
    limits = jnp.full(batch, length) if limits is None else limits
    stops = jnp.asarray(stops)

    def choose(logits: Array, index: Array) -> Array:
        if draw is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        sampling, keys = draw
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return jax.vmap(jax.random.categorical)(now, sampling.filtered(logits)).astype(jnp.int32)

    def going(state: tuple) -> Array:
        index, _, ended, _, _, _ = state
        return (index < length) & ~jnp.all(ended)

    def advance(state: tuple) -> tuple:
        index, token, ended, tokens, scores, cache = state
        logits, cache = step_fn(token, cache)
        token = choose(logits, index)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
        token, scores = jnp.where(ended, 0, token), scores + jnp.where(ended, 0.0, log_p)
        ended = ended | is_stop(token, stops) | (index + 1 >= limits)
        return index + 1, token, ended, tokens.at[:, index].set(token), scores, cache

    start = (
        jnp.int32(0),
        jnp.zeros(batch, jnp.int32),
        limits < 1,
        jnp.zeros((batch, length), jnp.int32),
        jnp.zeros(batch, jnp.float32),
        cache,
    )
    # The first step stands outside the loop: it changes the cache's structure.
    _, _, _, tokens, scores, _ = jax.lax.while_loop(going, advance, advance(start))
    return Decoded(tokens, scores)
