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


@functools.partial(jax.custom_vjp, nondiff_argnames=("transposed",))
def matmul(x: Array, kernel: Array, transposed: bool = False) -> Array:
    """x [..., in] @ kernel [in, out] to float32; both operands rounded to bfloat16.

    The gradients have the operands' dtypes. XLA has no product on CPUs for the gradient of what is
    transposed outside: a kernel [out, in] is given as it is, with `transposed`.
    """
    return _forward(x, kernel, transposed)[0]


def _forward(x: Array, kernel: Array, transposed: bool) -> tuple[Array, tuple[Array, ...]]:
    narrow_x, narrow_kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = _product(narrow_x, narrow_kernel, ((x.ndim - 1,), (1 if transposed else 0,)))
    return y, (narrow_x, narrow_kernel, jnp.zeros((), x.dtype), jnp.zeros((), kernel.dtype))


def _backward(transposed: bool, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    x, kernel, like_x, like_kernel = saved
    gradient = gradient.astype(jnp.bfloat16)  # one wide operand would make the product a wide one
    leading = tuple(range(gradient.ndim - 1))
    of_x = _product(gradient, kernel, ((gradient.ndim - 1,), (0 if transposed else 1,)))
    sides = (gradient, x) if transposed else (x, gradient)
    of_kernel = _product(*sides, (leading, leading))
    return of_x.astype(like_x.dtype), of_kernel.astype(like_kernel.dtype)


def _product(x: Array, y: Array, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return jax.lax.dot_general(x, y, (contract, ((), ())), preferred_element_type=jnp.float32)


matmul.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnames=("transposed",))
def per_head(x: Array, y: Array, transposed: bool) -> Array:
    """x [B, heads, Q, n] @ y, as `matmul`'s product.

    Args:
      x: Queries, or weights of keys.
      y: [B, heads, m, n] if `transposed`, such as keys; otherwise [B, heads, n, m], such as values.
      transposed: Which of the two.

    Returns:
      [B, heads, Q, m] float32.
    """
    return _forward_per_head(x, y, transposed)[0]


def _forward_per_head(x: Array, y: Array, transposed: bool) -> tuple[Array, tuple[Array, ...]]:
    narrow_x, narrow_y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    product = _product_per_head(narrow_x, narrow_y, transposed)
    return product, (narrow_x, narrow_y, jnp.zeros((), x.dtype))


def _backward_per_head(
    transposed: bool, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array]:
    x, y, like = saved
    gradient = gradient.astype(jnp.bfloat16)
    by_x = _product_per_head(gradient, y, not transposed)
    # XLA's fast products on CPUs sum over the last axis of the first operand. Of the two operands,
    # only queries and gradients of values, not those of all pairs, are copied into that layout.
    if transposed:
        by_y = _product_per_head(_swapped(x), gradient, False)
    else:
        by_y = _product_per_head(_swapped(gradient), x, False)
    return by_x.astype(like.dtype), _swapped(by_y).astype(like.dtype)


per_head.defvjp(_forward_per_head, _backward_per_head)


def _product_per_head(x: Array, y: Array, transposed: bool) -> Array:
    """The product, with rows and heads as one axis: XLA would round back to float32 otherwise,
    where an operand is a transposition that it can see.
    """
    batch = x.shape[:2]
    x, y = (operand.reshape(-1, *operand.shape[2:]) for operand in (x, y))
    product = jax.lax.dot_general(
        x, y, (((2,), (2 if transposed else 1,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
    return product.reshape(*batch, *product.shape[1:])


def _swapped(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)
