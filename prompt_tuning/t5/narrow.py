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
    """Whether the setting `T5Config.products` rounds operands to bfloat16 on this machine.

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
