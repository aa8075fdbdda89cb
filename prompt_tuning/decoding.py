"""Greedy decoding with a cache, and scores of given targets (rank classification)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.loss import Loss
from prompt_tuning.params import Params
from prompt_tuning.t5.network import T5, Cache

EOS = 1


def greedy(
    model: T5,
    params: Params,
    encoder_input_tokens: Array,
    length: int,
    tasks: Array | None = None,
) -> Array:
    """The most likely next token, step by step.

    Args:
      model: the backbone with its method.
      params: all of its parameters.
      encoder_input_tokens: [B, T] int32.
      length: most tokens to make.
      tasks: [B] int32, each row's task; see `T5`.

    Returns:
      [B, length] int32; after a row's end token (1) its tokens are 0.
    """
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})

    def decode_step(tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        logits, after = apply(tokens, cache, method=model.decode_step)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), after

    encoded = apply(encoder_input_tokens, tasks=tasks, method=model.encode)
    cache = model.init_cache(encoded, length)
    batch = encoder_input_tokens.shape[0]
    # The first step stands outside the loop: it computes the keys and values of cross attention.
    token, cache = decode_step(jnp.zeros(batch, jnp.int32), cache)
    tokens = jnp.zeros((batch, length), jnp.int32).at[:, 0].set(token)
    state = (jnp.int32(1), token, token == EOS, tokens, cache)

    def going(state: tuple) -> Array:
        index, _, ended, _, _ = state
        return (index < length) & ~jnp.all(ended)

    def advance(state: tuple) -> tuple:
        index, token, ended, tokens, cache = state
        token, cache = decode_step(token, cache)
        token = jnp.where(ended, 0, token)
        return index + 1, token, ended | (token == EOS), tokens.at[:, index].set(token), cache

    return jax.lax.while_loop(going, advance, state)[3]


def score(
    model: T5,
    params: Params,
    encoder_input_tokens: Array,
    targets: Array,
    tasks: Array | None = None,
) -> Array:
    """Log-probabilities of targets, the input encoded once for all of them.

    Args:
      model: the backbone with its method.
      params: all of its parameters.
      encoder_input_tokens: [B, T] int32.
      targets: [K, L] int32 for all rows (label words), or [B, K, L]; each ends in EOS, then 0.
      tasks: [B] int32, each row's task; see `T5`.

    Returns:
      [B, K] float32, the sum over each target's real tokens of log p(token).
    """
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    batch = encoder_input_tokens.shape[0]
    targets = jnp.broadcast_to(targets, (batch, *targets.shape[-2:]))
    choices = targets.shape[1]
    encoded = apply(encoder_input_tokens, tasks=tasks, method=model.encode)
    encoded = jax.tree.map(lambda x: jnp.repeat(x, choices, axis=0), encoded)
    flat = targets.reshape(batch * choices, -1)
    inputs = jnp.pad(flat, ((0, 0), (1, 0)))[:, :-1]
    logits = apply(encoded, inputs, flat, method=model.decode)
    cross_entropy, _ = Loss(z_loss=0.0).per_token(logits, flat)
    return -jnp.sum(cross_entropy * (flat > 0), axis=-1).reshape(batch, choices)
