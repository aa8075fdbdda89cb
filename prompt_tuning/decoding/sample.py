"""Greedy decoding and sampling: one token per row and step, until each row has ended."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Integer, Key

from prompt_tuning.decoding.step import NOTHING, Decoded, StepFn, is_stop
from prompt_tuning.errors import UserError, real_number, whole_number
from prompt_tuning.transformer.layers import ArrayLike, most_likely
from prompt_tuning.transformer.vocabulary import EOS

_COLDEST = 1e-30  # logits that differ do so by 1e-7 and more


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
      UserError: if a setting is out of its range; the message names it.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not real_number("temperature", self.temperature) > 0.0:
            raise UserError(f"temperature = {self.temperature}: must be above 0")
        whole_number("top_k", self.top_k, 0)  # 0 for all tokens
        if not 0.0 < real_number("top_p", self.top_p) <= 1.0:
            raise UserError(f"top_p = {self.top_p}: must be above 0 and at most 1")


class Draws(flax.struct.PyTreeNode):
    """How the tokens of each row are drawn; arrays, so that other values compile nothing.

    Attributes:
      keys: [B] random keys.
      temperature: [B] float32, as in `Sampling`; 0 for the most likely token at each step.
      top_k: [B] int32, as in `Sampling`.
      top_p: [B] float32, as in `Sampling`.
    """

    keys: Array
    temperature: Array
    top_k: Array
    top_p: Array

    def choose(
        self, logits: Float[Array, "batch vocab"], index: Int[Array, ""]
    ) -> Int[Array, " batch"]:
        """Chooses tokens [B] int32 from logits [B, V] at step `index`."""
        likeliest = most_likely(logits)
        samples = self.temperature > 0.0

        def draw() -> Array:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, index)
            drawn = jax.vmap(jax.random.categorical)(step_keys, self.filtered(logits))
            return jnp.where(samples, drawn.astype(jnp.int32), likeliest)

        return jax.lax.cond(jnp.any(samples), draw, lambda: likeliest)

    def filtered(self, logits: Float[Array, "batch vocab"]) -> Float[Array, "batch vocab"]:
        """The logits [B, V] to draw from; -inf for tokens that are left out."""
        logits = logits / jnp.where(self.temperature > 0.0, self.temperature, 1.0)[:, None]
        nucleus = self.top_p < 1.0

        def of_top_k() -> Array:
            count = jnp.where(self.top_k > 0, self.top_k.astype(jnp.float32), jnp.inf)
            return _top(logits, jnp.ones_like(logits), count)

        logits = jax.lax.cond(jnp.any(self.top_k > 0), of_top_k, lambda: logits)
        return jax.lax.cond(
            jnp.any(nucleus),
            lambda: _top(logits, jax.nn.softmax(logits), jnp.where(nucleus, self.top_p, jnp.inf)),
            lambda: logits,
        )


def _top(
    logits: Float[Array, "batch vocab"],
    weights: Float[Array, "batch vocab"],
    bound: Float[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """Keeps the logits [B, V] whose larger ones have weights below a bound; -inf for the others.

    The smallest of them is found by halving the range of float32, whose bits are in the order of
    the numbers; on CPUs that takes a twentieth of the time of sorting the vocabulary.
    """

    def number(bits: Int[Array, " batch"]) -> Float[Array, " batch"]:
        magnitude = jnp.int32(0x7FFFFFFF)
        return jax.lax.bitcast_convert_type(
            jnp.where(bits < 0, bits ^ magnitude, bits), jnp.float32
        )

    def halve(_: Int[Array, ""], ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, which does not overflow
        larger = jnp.sum(weights, axis=-1, where=logits > number(middle)[:, None])
        is_enough = larger < bound
        return jnp.where(is_enough, low, middle + 1), jnp.where(is_enough, middle, high)

    infinity = 0x7F800000  # the bits of inf; in the order, -inf is at the place below -infinity
    ends = jnp.full_like(bound, -infinity - 1, jnp.int32), jnp.full_like(bound, infinity, jnp.int32)
    least, _ = jax.lax.fori_loop(0, 32, halve, ends)
    return jnp.where(logits < number(least)[:, None], NOTHING, logits)


def keys_of(
    seeds: int | Integer[ArrayLike, ""] | Integer[ArrayLike, " batch"],
    numbers: Sequence[int] | Integer[ArrayLike, " batch"],
) -> Key[Array, " batch"]:
    """Makes keys [B] from each row's seed and number, so a sample does not depend on other rows.

    Args:
      seeds: One seed for all rows, or [B] uint32.
      numbers: [B], distinct for rows that have the same seed but are to differ.
    """
    numbers = jnp.asarray(numbers)
    seeds = jnp.broadcast_to(jnp.asarray(seeds, jnp.uint32), numbers.shape)
    return jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(
        seeds, numbers
    )


def sampling_arrays(
    samplings: Sequence[Sampling | None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Temperature, top_k and top_p [N] of `Draws`; temperature 0 stands for None."""
    rows = [
        draw_numbers(x.temperature, x.top_k, x.top_p) if x else draw_numbers(0.0, 0, 1.0)
        for x in samplings
    ]
    temperature, top_k, top_p = zip(*rows, strict=True) if rows else ((), (), ())
    return (
        np.array(temperature, np.float32),
        np.array(top_k, np.int32),
        np.array(top_p, np.float32),
    )


def draw_numbers(
    temperature: float, top_k: int, top_p: float
) -> tuple[np.float32, np.int32, np.float32]:
    """Temperature, top_k and top_p of a row of `Draws`, as devices take them.

    Numbers above 0 stay so: the least that they become choose the likeliest token, as they would.
    A device takes numbers below the normal ones of float32 for 0, which means something else, and
    logits divided by less than `_COLDEST` may become infinite, several of them alike.
    """
    if temperature > 0.0:
        temperature = max(temperature, _COLDEST)
    return (
        np.float32(temperature),
        np.int32(top_k),
        np.float32(max(top_p, float(np.finfo(np.float32).tiny))),
    )


class _State(flax.struct.PyTreeNode):
    """The loop's state after `index` steps.

    Attributes:
      index: [] int32.
      token: [B] int32, the last token of each row; 0 once it has ended.
      ended: [B] bool.
      tokens: [B, L] int32, the tokens so far, then 0.
      scores: [B] float32, the sum of their log p.
      log_p: [B, L] float32, the log p of each.
      top_tokens, top_log_p: [B, L, A], the most likely tokens of each step and their log p.
      cache: The cache of the step function.
    """

    index: Array
    token: Array
    ended: Array
    tokens: Array
    scores: Array
    log_p: Array
    top_tokens: Array
    top_log_p: Array
    cache: Any


def decode(
    step_fn: StepFn,
    cache: Any,
    *,
    batch: int,
    length: int,
    draws: Draws | None = None,
    limits: Int[Array, " {batch}"] | None = None,
    stops: Int[Array, " stops"] | Int[Array, "{batch} stops"] | Sequence[int] = (EOS,),
    alternatives: int = 0,
    with_alternatives: Bool[Array, " {batch}"] | None = None,
) -> Decoded:
    """Decodes token by token until each row has ended.

    Args:
      step_fn: The model, see `StepFn`.
      cache: Its first cache.
      batch: Number of rows, B.
      length: Maximum number of tokens, L.
      draws: How tokens are drawn; None for the most likely token at each step.
      limits: [B] int32, each row's maximum number of tokens; None for L.
      stops: [S] or [B, S] int32, tokens that end a row.
      alternatives: Number of most likely tokens to report at each step, A.
      with_alternatives: [B] bool, the rows to report them of; they are computed if there is one.
        None for all.

    Returns:
      Tokens [B, L], scores [B] and log p [B, L] under the model's own distribution, whatever was
      drawn from.
    """
    limits = jnp.full(batch, length) if limits is None else limits
    stops = jnp.asarray(stops)
    asked = jnp.ones(batch, bool) if with_alternatives is None else with_alternatives

    def top(logits: Float[Array, "batch vocab"]) -> tuple[Array, Array]:
        """The most likely tokens [B, A] and their logits."""
        if not alternatives:
            return jnp.zeros((batch, 0)), jnp.zeros((batch, 0), jnp.int32)
        return jax.lax.cond(
            jnp.any(asked),
            lambda: tuple(jax.lax.top_k(logits, alternatives)),
            lambda: (jnp.zeros((batch, alternatives)), jnp.zeros((batch, alternatives), jnp.int32)),
        )

    def choose(logits: Float[Array, "batch vocab"], index: Int[Array, ""]) -> Int[Array, " batch"]:
        if draws is None:
            return most_likely(logits)
        return draws.choose(logits, index)

    def unfinished(state: _State) -> Array:
        return (state.index < length) & ~jnp.all(state.ended)

    def advance(state: _State) -> _State:
        logits, cache = step_fn(state.token, state.cache)
        token = choose(logits, state.index)
        logit = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        log_p = jnp.where(state.ended, 0.0, logit - normaliser)
        token = jnp.where(state.ended, 0, token)
        top_logits, top_tokens = top(logits)
        index = state.index + 1
        return state.replace(
            index=index,
            token=token,
            ended=state.ended | is_stop(token, stops) | (index >= limits),
            tokens=state.tokens.at[:, state.index].set(token),
            scores=state.scores + log_p,
            log_p=state.log_p.at[:, state.index].set(log_p),
            top_tokens=state.top_tokens.at[:, state.index].set(top_tokens),
            top_log_p=state.top_log_p.at[:, state.index].set(top_logits - normaliser[:, None]),
            cache=cache,
        )

    start = _State(
        index=jnp.int32(0),
        token=jnp.zeros(batch, jnp.int32),
        ended=limits < 1,
        tokens=jnp.zeros((batch, length), jnp.int32),
        scores=jnp.zeros(batch, jnp.float32),
        log_p=jnp.zeros((batch, length), jnp.float32),
        top_tokens=jnp.zeros((batch, length, alternatives), jnp.int32),
        top_log_p=jnp.zeros((batch, length, alternatives), jnp.float32),
        cache=cache,
    )
    # The first step is outside the loop because it changes the structure of the cache.
    final = jax.lax.while_loop(unfinished, advance, advance(start))
    return Decoded(final.tokens, final.scores, final.log_p, final.top_tokens, final.top_log_p)
