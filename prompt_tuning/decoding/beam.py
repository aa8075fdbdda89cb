"""Beam search with T5X's candidates, length penalty and stopping rule: scores are comparable."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.decoding.step import NOTHING, Decoded, StepFn, is_stop
from prompt_tuning.transformer.vocabulary import EOS


@runtime_checkable
class Rows(Protocol):
    """A cache whose rows can be chosen anew."""

    def rows(self, index: Int[Array, " rows"]) -> Any:
        """The cache whose row i continues row `index[i]`, which is of the same batch element."""


def penalty(
    alpha: Float[Array, "#rows"] | float, length: Int[Array, "#rows"] | Int[Array, ""] | int
) -> Float[Array, "..."]:
    """The divisor of a sequence's log p (Wu et al., 2016, equation 14): ((5 + n) / 6)^alpha.

    `length` counts the stop token.
    """
    tokens = jnp.asarray(length, jnp.float32)
    return ((5.0 + tokens) / 6.0) ** jnp.asarray(alpha, jnp.float32)


class _State(flax.struct.PyTreeNode):
    """The search after `index` steps; K beams per row, the best first.

    Attributes:
      index: [] int32.
      tokens: [B, K, L] int32, the unfinished sequences so far, then 0.
      log_p: [B, K] float32, their log p; -inf where there is none.
      finished_tokens: [B, K, L] int32, the best finished sequences.
      finished_scores: [B, K] float32, their scores; -inf where there is none.
      cache: The cache of the step function, B K rows; None before the first step.
    """

    index: Array
    tokens: Array
    log_p: Array
    finished_tokens: Array
    finished_scores: Array
    cache: Any


def beam_search(
    step_fn: StepFn,
    cache: Rows,
    *,
    batch: int,
    beams: int,
    length: int,
    alpha: Float[Array, " {batch}"] | Float[Array, ""] | float = 0.6,
    limits: Int[Array, " {batch}"] | None = None,
    stops: Int[Array, " stops"] | Int[Array, "{batch} stops"] | Sequence[int] = (EOS,),
) -> Decoded:
    """Searches for the best sequences by extending the best `beams` unfinished ones.

    Each step looks at the 2 K best candidates, of which at least K are unfinished or at least K
    finished. A row ends at its limit, or when no unfinished sequence can become better than its
    worst finished one.

    Args:
      step_fn: The model, see `StepFn`; called with B rows first, then with B K, the K of a row
        one after another.
      cache: Its first cache; those that `step_fn` returns have `rows`.
      batch: Number of rows, B.
      beams: Number of beams, K.
      length: Maximum number of tokens, L.
      alpha: Exponent of the length penalty, one for all rows or [B]; 0 for none.
      limits: [B] int32, each row's maximum number of tokens; None for L.
      stops: [S] or [B, S] int32, tokens that finish a sequence.

    Returns:
      Tokens [B, K, L] and scores [B, K], the best first. A row without a finished sequence has its
      unfinished ones and their log p. Places without a sequence have tokens 0 and score -inf.
    """
    limits = jnp.full(batch, length) if limits is None else limits
    stops = jnp.asarray(stops)
    alpha = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), (batch,))
    first_rows = jnp.arange(batch)[:, None] * beams

    def unfinished(state: _State) -> Array:
        bound = state.log_p[:, 0] / penalty(alpha, limits)  # log p is negative: at most this
        open_rows = (state.index < limits) & (state.finished_scores[:, -1] <= bound)
        return (state.index < length) & jnp.any(open_rows)

    def extend(state: _State, logits: Array, cache: Any) -> _State:
        """The state after a step; logits [B, K, V], cache of B K rows."""
        vocabulary = logits.shape[-1]
        log_p = state.log_p[..., None] + jax.nn.log_softmax(logits, axis=-1)
        candidate_count = min(2 * beams, beams * vocabulary)
        log_p, flat = jax.lax.top_k(log_p.reshape(batch, -1), candidate_count)  # [B, 2 K]
        parents, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
        candidates = _take(state.tokens, parents).at[:, :, state.index].set(token)
        ends = is_stop(token, stops)

        live_log_p, live = jax.lax.top_k(jnp.where(ends, NOTHING, log_p), beams)
        scores = jnp.where(ends, log_p / penalty(alpha, state.index + 1)[:, None], NOTHING)
        all_scores = jnp.concatenate([state.finished_scores, scores], axis=1)
        all_tokens = jnp.concatenate([state.finished_tokens, candidates], axis=1)
        finished_scores, finished = jax.lax.top_k(all_scores, beams)

        running = state.index < limits

        def where_running(after: Array, before: Array) -> Array:
            return jnp.where(running.reshape(-1, *(1,) * (after.ndim - 1)), after, before)

        rows = first_rows + jnp.take_along_axis(parents, live, axis=1)
        return state.replace(
            index=state.index + 1,
            tokens=where_running(_take(candidates, live), state.tokens),
            log_p=where_running(live_log_p, state.log_p),
            finished_tokens=where_running(_take(all_tokens, finished), state.finished_tokens),
            finished_scores=where_running(finished_scores, state.finished_scores),
            cache=cache.rows(rows.reshape(-1)),
        )

    def advance(state: _State) -> _State:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.index - 1, axis=2, keepdims=False)
        logits, cache = step_fn(last.reshape(-1), state.cache)
        return extend(state, logits.reshape(batch, beams, -1), cache)

    nothing = jnp.full((batch, beams), NOTHING)
    empty = jnp.zeros((batch, beams, length), jnp.int32)
    start = _State(
        index=jnp.int32(0),
        tokens=empty,
        log_p=nothing.at[:, 0].set(0.0),  # all beams of a row are equal: extend one of them
        finished_tokens=empty,
        finished_scores=nothing,
        cache=None,
    )
    logits, cache = step_fn(jnp.zeros(batch, jnp.int32), cache)
    logits = jnp.repeat(logits[:, None], beams, axis=1)
    state = extend(start, logits, cache.rows(jnp.repeat(jnp.arange(batch), beams)))
    final = jax.lax.while_loop(unfinished, advance, state)
    has_finished = final.finished_scores[:, :1] > NOTHING
    scores = jnp.where(has_finished, final.finished_scores, final.log_p)
    tokens = jnp.where(has_finished[..., None], final.finished_tokens, final.tokens)
    return Decoded(jnp.where((scores > NOTHING)[..., None], tokens, 0), scores)


def _take(
    x: Int[Array, "batch places length"], index: Int[Array, "batch taken"]
) -> Int[Array, "batch taken length"]:
    """Takes places [B, N] of the second axis of x [B, K, L]."""
    return jnp.take_along_axis(x, index[..., None], axis=1)
