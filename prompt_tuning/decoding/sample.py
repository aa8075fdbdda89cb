"""Greedy decoding and sampling: one token per row and step, until each row has ended."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.decoding.step import NOTHING, Decoded, StepFn, is_stop
from prompt_tuning.t5.vocabulary import EOS


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are drawn from; applied in the order of the attributes.

    Attributes:
      temperature: Divisor of the logits.
      top_k: Number of most likely tokens that are kept, with any that tie with the last of them; 0
        to keep all.
      top_p: Probability that the kept tokens must reach together, as few and as likely ones as
        possible (Holtzman et al., 2020).

    Raises:
      ValueError: if a setting is out of its range; the message names it.
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
            raise ValueError(f"top_p = {self.top_p}: must be above 0 and at most 1")

    def filtered(self, logits: Array) -> Array:
        """The logits [..., V] to draw from; -inf for tokens that are left out."""
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
    """Makes a key from each row's number, so a sample does not depend on the other rows."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(rows))


class _State(flax.struct.PyTreeNode):
    """The loop's state after `index` steps.

    Attributes:
      index: [] int32.
      token: [B] int32, the last token of each row; 0 once it has ended.
      ended: [B] bool.
      tokens: [B, L] int32, the tokens so far, then 0.
      scores: [B] float32, the sum of their log p.
      cache: The cache of the step function.
    """

    index: Array
    token: Array
    ended: Array
    tokens: Array
    scores: Array
    cache: Any


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
    """Decodes token by token until each row has ended.

    Args:
      step_fn: The model, see `StepFn`.
      cache: Its first cache.
      batch: Number of rows, B.
      length: Maximum number of tokens, L.
      draw: Sampling settings and random keys [B]; None for the most likely token at each step.
      limits: [B] int32, each row's maximum number of tokens; None for L.
      stops: [S] or [B, S] int32, tokens that end a row.

    Returns:
      Tokens [B, L] and scores [B] under the model's own distribution, whatever was drawn from.
    """
    limits = jnp.full(batch, length) if limits is None else limits
    stops = jnp.asarray(stops)

    def choose(logits: Array, index: Array) -> Array:
        if draw is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        sampling, keys = draw
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        drawn = jax.vmap(jax.random.categorical)(step_keys, sampling.filtered(logits))
        return drawn.astype(jnp.int32)

    def unfinished(state: _State) -> Array:
        return (state.index < length) & ~jnp.all(state.ended)

    def advance(state: _State) -> _State:
        logits, cache = step_fn(state.token, state.cache)
        token = choose(logits, state.index)
        logit = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        log_p = logit - jax.nn.logsumexp(logits, axis=-1)
        token = jnp.where(state.ended, 0, token)
        index = state.index + 1
        return state.replace(
            index=index,
            token=token,
            ended=state.ended | is_stop(token, stops) | (index >= limits),
            tokens=state.tokens.at[:, state.index].set(token),
            scores=state.scores + jnp.where(state.ended, 0.0, log_p),
            cache=cache,
        )

    start = _State(
        index=jnp.int32(0),
        token=jnp.zeros(batch, jnp.int32),
        ended=limits < 1,
        tokens=jnp.zeros((batch, length), jnp.int32),
        scores=jnp.zeros(batch, jnp.float32),
        cache=cache,
    )
    # The first step is outside the loop because it changes the structure of the cache.
    final = jax.lax.while_loop(unfinished, advance, advance(start))
    return Decoded(final.tokens, final.scores)
