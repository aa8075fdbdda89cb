"""A model's step function, greedy decoding with it, and scores of given targets."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.decoding.sample import decode
from prompt_tuning.decoding.step import StepFn
from prompt_tuning.errors import UserError, real_number
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.layers import ArrayLike
from prompt_tuning.transformer.network import Cache, EncoderDecoder
from prompt_tuning.transformer.paths import Params

RANK_MEMORY_GIB = 1.0  # default of the setting of this name; see `rank_bytes`


def start(
    model: EncoderDecoder,
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
      tasks: [B] int32, each row's task; see `EncoderDecoder`.
    """
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    encoded = apply(encoder_input_tokens, tasks=tasks, method=model.encode)
    step_fn = functools.partial(apply, method=model.decode_step)
    return step_fn, model.init_cache(encoded, length)


def greedy(
    model: EncoderDecoder,
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
    model: EncoderDecoder,
    params: Params,
    encoder_input_tokens: Int[ArrayLike, "batch tokens"],
    targets: Int[ArrayLike, "labels targets"] | Int[ArrayLike, "batch labels targets"],
    tasks: Int[ArrayLike, " batch"] | None = None,
    most_bytes: float = math.inf,
) -> Float[Array, "batch labels"]:
    """Log-probabilities of targets; the input is encoded once for all of them.

    Targets whose logits and attention weights together exceed `most_bytes` are decoded in equal
    parts, one after the other.

    Args:
      model: The backbone with its method.
      params: All of the model's parameters.
      encoder_input_tokens: [B, T] int32.
      targets: [K, L] int32, the same for all rows (label words), or [B, K, L]; EOS ends each
        target and 0 follows it.
      tasks: [B] int32, each row's task; see `EncoderDecoder`.
      most_bytes: Bound of these arrays, over all devices; one target is decoded in any case.

    Returns:
      [B, K] float32, the sum of log p over each target's tokens, without padding.
    """
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    batch, (count, length) = encoder_input_tokens.shape[0], targets.shape[-2:]
    targets = jnp.broadcast_to(targets, (batch, count, length))
    encoded = apply(encoder_input_tokens, tasks=tasks, method=model.encode)

    def scores(targets: Array) -> Array:
        flat = targets.reshape(-1, length)
        inputs = jnp.pad(flat, ((0, 0), (1, 0)))[:, :-1]
        logits = apply(encoded, inputs, flat, method=model.decode)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, flat)
        return -jnp.sum(cross_entropy, axis=-1, where=flat > 0).reshape(batch, -1)

    bytes_of_one = batch * length * _bytes_of_position(model.config, encoded.states.shape[1])
    parts = math.ceil(count / max(1, most_bytes // bytes_of_one))
    if parts == 1:
        return scores(targets)
    size = math.ceil(count / parts)
    padded = jnp.pad(targets, ((0, 0), (0, parts * size - count), (0, 0)))
    by_part = jnp.moveaxis(padded.reshape(batch, parts, size, length), 1, 0)
    return jnp.moveaxis(jax.lax.map(scores, by_part), 0, 1).reshape(batch, -1)[:, :count]


def rank_bytes(memory_gib: float, row_shards: int = 1) -> float:
    """The `most_bytes` of `score` for RANK_MEMORY_GIB on each of the devices that rows are on.

    Raises:
      UserError: if the setting is not a positive number.
    """
    if not (gib := real_number("RANK_MEMORY_GIB", memory_gib)) > 0:
        raise UserError(f"RANK_MEMORY_GIB = {memory_gib}: must be above 0")
    return gib * 2**30 * row_shards


def _bytes_of_position(config: Config, encoder_length: int) -> int:
    """Bytes of the largest float32 arrays of a decoder position: logits, one layer's attention."""
    return 4 * (config.vocab_size + config.stack("decoder").heads * encoder_length)
