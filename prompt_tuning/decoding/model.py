"""T5's step function, greedy decoding with it, and scores of given targets."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.decoding.sample import decode
from prompt_tuning.decoding.step import StepFn
from prompt_tuning.t5.layers import ArrayLike
from prompt_tuning.t5.network import T5, Cache
from prompt_tuning.t5.paths import Params


def start(
    model: T5,
    params: Params,
    encoder_input_tokens: Int[ArrayLike, "batch tokens"],
    length: int,
    tasks: Int[ArrayLike, " batch"] | None = None,
) -> tuple[StepFn, Cache]:
    """Encodes the input; returns the step function and first cache for up to `length` tokens.

    Args:
      model: The backbone with its method.
      params: All of the model's parameters.
      encoder_input_tokens: [B, T] int32.
      length: Maximum number of tokens.
      tasks: [B] int32, each row's task; see `T5`.
    """
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    encoded = apply(encoder_input_tokens, tasks=tasks, method=model.encode)
    step_fn = functools.partial(apply, method=model.decode_step)
    return step_fn, model.init_cache(encoded, length)


def greedy(
    model: T5,
    params: Params,
    encoder_input_tokens: Int[ArrayLike, "batch tokens"],
    length: int,
    tasks: Int[ArrayLike, " batch"] | None = None,
) -> Int[Array, "batch {length}"]:
    """Decodes the most likely next token, step by step; arguments as in `start`.

    Returns:
      [B, length] int32; 0 after a row's end token, which is 1.
    """
    step_fn, cache = start(model, params, encoder_input_tokens, length, tasks)
    return decode(step_fn, cache, batch=encoder_input_tokens.shape[0], length=length).tokens


def score(
    model: T5,
    params: Params,
    encoder_input_tokens: Int[ArrayLike, "batch tokens"],
    targets: Int[ArrayLike, "labels targets"] | Int[ArrayLike, "batch labels targets"],
    tasks: Int[ArrayLike, " batch"] | None = None,
) -> Float[Array, "batch labels"]:
    """Log-probabilities of targets; the input is encoded once for all of them.

    Args:
      model: The backbone with its method.
      params: All of the model's parameters.
      encoder_input_tokens: [B, T] int32.
      targets: [K, L] int32, the same for all rows (label words), or [B, K, L]; EOS ends each
        target and 0 follows it.
      tasks: [B] int32, each row's task; see `T5`.

    Returns:
      [B, K] float32, the sum of log p over each target's tokens, without padding.
    """
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    batch = encoder_input_tokens.shape[0]
    targets = jnp.broadcast_to(targets, (batch, *targets.shape[-2:]))
    encoded = apply(encoder_input_tokens, tasks=tasks, method=model.encode)
    flat = targets.reshape(-1, targets.shape[-1])
    inputs = jnp.pad(flat, ((0, 0), (1, 0)))[:, :-1]
    logits = apply(encoded, inputs, flat, method=model.decode)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, flat)
    return -jnp.sum(cross_entropy, axis=-1, where=flat > 0).reshape(batch, -1)
