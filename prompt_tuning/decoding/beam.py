"""Beam search with T5X's candidates, length penalty and ending, so that scores compare."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.decoding.step import NOTHING, Decoded, StepFn, is_stop
from prompt_tuning.t5.vocabulary import EOS


class Rows(Protocol):
    """A cache that can go on from other rows."""

    def rows(self, index: Array) -> Any:
        """The cache whose row i goes on from row `index[i]`, of this row's batch element."""


def penalty(alpha: float, length: Array | int) -> Array:
    """What log p of a sequence is divided by (Wu et al., 2016, equation 14): ((5 + n) / 6)^alpha.

    `length` counts the stop token.
    """
    return ((5.0 + length) / 6.0) ** jnp.float32(alpha)


def beam_search(
    step_fn: StepFn,
    cache: Rows,
    *,
    batch: int,
    beams: int,
    length: int,
    alpha: float = 0.6,
    limits: Array | None = None,
    stops: Array | Sequence[int] = (EOS,),
) -> Decoded:
    """The best sequences found by going on from the best `beams` unfinished ones.

    Each step looks at the 2 K best candidates, of which K are unfinished or K finished. A row ends
    at its limit, or when no unfinished sequence can get better than its worst finished one.

    Args:
      step_fn: see `StepFn`; called with B rows first, then with B K, those of a row one after
        another.
      cache: its first; the ones that `step_fn` returns have `rows`.
      batch: rows, B.
      beams: K.
      length: most tokens to make, L.
      alpha: of the length penalty; 0 for none.
      limits: [B] int32, most tokens of each row; None for L.
      stops: [S] or [B, S] int32, tokens that finish a sequence.

    Returns:
      tokens [B, K, L] and scores [B, K], the best first. A row of which nothing has finished: its
      unfinished sequences and their log p. A place that nothing takes has tokens 0, score -inf.
    """
    limits = jnp.full(batch, length) if limits is None else limits
    stops = jnp.asarray(stops)
    first_rows = jnp.arange(batch)[:, None] * beams

    def going(state: tuple) -> Array:
        index, _, live, _, finished, _ = state
        best = live[:, 0] / penalty(alpha, limits)  # log p is negative: at most this
        open_rows = (index < limits) & (finished[:, -1] <= best)
        return (index < length) & jnp.any(open_rows)

    def grow(state: tuple, logits: Array, cache: Any) -> tuple:
        """The state after a step; logits [B, K, V], cache of B K rows."""
        index, tokens, live, finished_tokens, finished, _ = state
        vocabulary = logits.shape[-1]
        log_p = live[..., None] + jax.nn.log_softmax(logits, axis=-1)
        wide = min(2 * beams, beams * vocabulary)
        log_p, flat = jax.lax.top_k(log_p.reshape(batch, -1), wide)  # [B, 2 K]
        parents, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
        candidates = _take(tokens, parents).at[:, :, index].set(token)
        ends = is_stop(token, stops)

        live_after, kept = jax.lax.top_k(jnp.where(ends, NOTHING, log_p), beams)
        scores = jnp.where(ends, log_p / penalty(alpha, index + 1), NOTHING)
        every_score = jnp.concatenate([finished, scores], axis=1)
        every = jnp.concatenate([finished_tokens, candidates], axis=1)
        finished_after, best = jax.lax.top_k(every_score, beams)

        cache = cache.rows((first_rows + jnp.take_along_axis(parents, kept, axis=1)).reshape(-1))
        running = index < limits

        def keep(after: Array, before: Array) -> Array:
            return jnp.where(running.reshape(-1, *(1,) * (after.ndim - 1)), after, before)

        return (
            index + 1,
            keep(_take(candidates, kept), tokens),
            keep(live_after, live),
            keep(_take(every, best), finished_tokens),
            keep(finished_after, finished),
            cache,
        )

    def advance(state: tuple) -> tuple:
        index, tokens, *_, cache = state
        last = jax.lax.dynamic_index_in_dim(tokens, index - 1, axis=2, keepdims=False)
        logits, cache = step_fn(last.reshape(-1), cache)
        return grow(state, logits.reshape(batch, beams, -1), cache)

    nothing = jnp.full((batch, beams), NOTHING)
    empty = jnp.zeros((batch, beams, length), jnp.int32)
    start = (jnp.int32(0), empty, nothing.at[:, 0].set(0.0), empty, nothing, None)
    logits, cache = step_fn(jnp.zeros(batch, jnp.int32), cache)
    logits = jnp.repeat(logits[:, None], beams, axis=1)
    state = grow(start, logits, cache.rows(jnp.repeat(jnp.arange(batch), beams)))
    _, tokens, live, finished_tokens, finished, _ = jax.lax.while_loop(going, advance, state)
    some = finished[:, :1] > NOTHING
    scores = jnp.where(some, finished, live)
    tokens = jnp.where(some[..., None], finished_tokens, tokens)
    return Decoded(jnp.where((scores > NOTHING)[..., None], tokens, 0), scores)


def _take(x: Array, index: Array) -> Array:
    """x [B, K, L] at index [B, N] of its second axis."""
    return jnp.take_along_axis(x, index[..., None], axis=1)
