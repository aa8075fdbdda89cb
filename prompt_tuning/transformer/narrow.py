"""Matrix products with bfloat16 operands and float32 sums, in both passes.

On CPUs with bfloat16 instructions such a product takes about a third of the time of a float32 one.
Parameters, activations and gradients between products keep their dtypes.
"""

import functools
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.errors import UserError

PRODUCTS = ("auto", "float32", "bfloat16")
# What "auto" stands for, if set.
VARIABLE = "PROMPT_TUNING_PRODUCTS"


def rounds(products: str) -> bool:
    """Whether the setting `Config.products` rounds operands to bfloat16 on this machine.

    "auto" does on CPUs that have instructions for it. On accelerators it does not: TPUs round
    float32 operands anyway, and GPUs gain from a bfloat16 `dtype`. The environment variable
    `PROMPT_TUNING_PRODUCTS` replaces "auto".
    """
    if products == "auto":
        products = os.environ.get(VARIABLE, products)
        if products not in PRODUCTS:
            raise UserError(
                f"{VARIABLE} = {products!r}: choose from {', '.join(PRODUCTS)}, or unset it"
            )
    if products == "auto":
        return jax.default_backend() == "cpu" and cpu_has_bfloat16()
    return products == "bfloat16"


@functools.cache
def cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:  # not Linux
        return False
    return (
        re.search(r"^(flags|Features)\b.*\b(avx512_bf16|amx_bf16|bf16)\b", flags, re.M) is not None
    )


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """x [..., in] @ kernel [in, out] to float32; both operands rounded to bfloat16.

    The gradients have the operands' dtypes.
    """
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow_x, narrow_kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = _product(narrow_x, narrow_kernel, ((x.ndim - 1,), (0,)))
    return y, (narrow_x, narrow_kernel, jnp.zeros((), x.dtype), jnp.zeros((), kernel.dtype))


def _backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    x, kernel, like_x, like_kernel = saved
    gradient = gradient.astype(jnp.bfloat16)  # one wide operand would make the product a wide one
    leading = tuple(range(gradient.ndim - 1))
    of_x = _product(gradient, kernel, ((gradient.ndim - 1,), (1,)))
    of_kernel = _product(x, gradient, (leading, leading))
    return of_x.astype(like_x.dtype), of_kernel.astype(like_kernel.dtype)


def _product(x: Array, y: Array, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return jax.lax.dot_general(x, y, (contract, ((), ())), preferred_element_type=jnp.float32)


matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def attention_logits(query: Array, key: Array) -> Array:
    """Products [B, heads, Q, K] of [B, Q, heads, d] and [B, K, heads, d], as `matmul`'s."""
    return _logits_forward(query, key)[0]


def _logits_forward(query: Array, key: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow_query, narrow_key = query.astype(jnp.bfloat16), key.astype(jnp.bfloat16)
    logits = _per_head(_rows(narrow_query), _rows(narrow_key), 3)
    return logits, (narrow_query, narrow_key, jnp.zeros((), query.dtype))


def _logits_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    query, key, like = saved
    gradient = gradient.astype(jnp.bfloat16)
    by_query = _from_rows(_per_head(gradient, _rows(key), 2))
    by_key = _from_columns(_per_head(_columns(query), gradient, 2))
    return by_query.astype(like.dtype), by_key.astype(like.dtype)


attention_logits.defvjp(_logits_forward, _logits_backward)


@jax.custom_vjp
def attention_values(weights: Array, value: Array) -> Array:
    """Products [B, Q, heads, d] of [B, heads, Q, K] and [B, K, heads, d], as `matmul`'s."""
    return _values_forward(weights, value)[0]


def _values_forward(weights: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow_weights, narrow_value = weights.astype(jnp.bfloat16), value.astype(jnp.bfloat16)
    y = _from_rows(_per_head(narrow_weights, _rows(narrow_value), 2))
    return y, (narrow_weights, narrow_value, jnp.zeros((), weights.dtype))


def _values_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    weights, value, like = saved
    gradient = gradient.astype(jnp.bfloat16)
    by_weights = _per_head(_rows(gradient), _rows(value), 3)
    by_value = _from_columns(_per_head(_columns(gradient), weights, 2))
    return by_weights.astype(like.dtype), by_value.astype(like.dtype)


attention_values.defvjp(_values_forward, _values_backward)


def _per_head(x: Array, y: Array, axis: int) -> Array:
    """Sums over the last axis of x and an axis of y, both [B, heads, ., .].

    XLA rounds back to float32 if it can see a transposition of the operands or if x is summed over
    another axis: hence one axis of rows and heads, and `_columns`.
    """
    batch = x.shape[:2]
    x, y = (operand.reshape(-1, *operand.shape[2:]) for operand in (x, y))
    product = jax.lax.dot_general(
        x, y, (((2,), (axis - 1,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
    return product.reshape(*batch, *product.shape[1:])


def _rows(x: Array) -> Array:
    """[B, L, heads, d] to [B, heads, L, d]."""
    return x.transpose(0, 2, 1, 3)


def _columns(x: Array) -> Array:
    """[B, L, heads, d] to [B, heads, d, L]."""
    return x.transpose(0, 2, 3, 1)


_from_rows = _rows


def _from_columns(x: Array) -> Array:
    """[B, heads, d, L] to [B, L, heads, d]."""
    return x.transpose(0, 3, 1, 2)
