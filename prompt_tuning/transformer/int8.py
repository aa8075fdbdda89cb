"""Frozen matrices in int8, as qwix's QArray: int8 values and a float32 scale per channel.

w is about q * s, with q in [-128, 127]. A kernel [in, out] has s [1, out], a table [V, D] has
s [V, 1]: the largest |w| of the channel over 127.5, so that no value is off by more than s / 2.
qwix is imported only when there is something to quantise.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.errors import UserError

INT8 = "int8"
# Axis that products sum over, by a leaf's name; values along it share a scale.
_SUMMED = {"kernel": -2, "embedding": -1}


def is_int8(leaf: Any) -> bool:
    """Whether a leaf is a QArray (of arrays or of shapes)."""
    return hasattr(leaf, "qvalue")


def quantize(leaf: Array, path: str) -> Any:
    """Quantises a kernel [in, out], scanned kernels [layers, in, out], or the table [V, D].

    Args:
      leaf: float array.
      path: path or name of the leaf, which ends in "kernel" or "embedding".

    Returns:
      A QArray.

    Raises:
      UserError: if qwix is not installed.
    """
    axes = set(range(leaf.ndim)) - {leaf.ndim + _SUMMED[path.rpartition("/")[2]]}
    return _qwix().quantize(leaf, jnp.int8, channelwise_axes=axes, scale_dtype=jnp.float32)


def dequantize(leaf: Any) -> Array:
    """Returns a QArray as float32, any other array as it is."""
    return _qwix().dequantize(leaf) if is_int8(leaf) else leaf


def rows(table: Any, ids: Any) -> Array:
    """Looks up rows [..., D] of a table [V, D]; of an int8 table, only these become float32."""
    return dequantize(jax.tree.map(lambda x: jnp.take(x, ids, axis=0, mode="clip"), table))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, kernel: Any, dtype: jnp.dtype) -> Array:
    """Multiplies x [..., in] of `dtype` by a QArray [in, out]; float32, differentiable in x only.

    Eight-bit integers are exact in any `dtype`; the scales multiply the sums.
    """
    return _product(x, kernel.qvalue, 0) * _scale(kernel, x)


def _forward(x: Array, kernel: Any, dtype: jnp.dtype) -> tuple[Array, Any]:
    return matmul(x, kernel, dtype), kernel


def _backward(dtype: jnp.dtype, kernel: Any, gradient: Array) -> tuple[Array, None]:
    scaled = (gradient * _scale(kernel, gradient)).astype(dtype)
    return _product(scaled, kernel.qvalue, 1).astype(dtype), None


matmul.defvjp(_forward, _backward)


def _scale(kernel: Any, x: Array) -> Array:
    """The kernel's scale [1, out] with as many axes as x."""
    return jnp.expand_dims(kernel.scale, tuple(range(x.ndim - 2)))


def _product(x: Array, integers: Array, axis: int) -> Array:
    # Without the barrier the compiler may cast all layers ahead of time, keep the casts of the
    # forward pass for the backward pass, or hoist them out of the decoding loop.
    x, integers = jax.lax.optimization_barrier((x, integers))
    contract = (((x.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(
        x, integers.astype(x.dtype), contract, preferred_element_type=jnp.float32
    )


def _qwix() -> Any:
    try:
        import qwix
    except ImportError as error:
        raise UserError(
            "BACKBONE_DTYPE = 'int8': needs qwix; install it with pip install 'prompt-tuning[int8]'"
        ) from error
    return qwix
