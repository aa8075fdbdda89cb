"""Frozen matrices in int8, as qwix's QArray: whole numbers, and a float32 scale a channel.

w is about q * s, q in [-128, 127]. A kernel [in, out] has s [1, out], a table [V, D] has s [V, 1]:
the largest |w| that s is of, over 127.5. No value is off by more than s / 2. qwix is imported when
there is something to quantise.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.errors import UserError

INT8 = "int8"
# The axis that products sum over, by a leaf's name: its values share a scale.
_SUMMED = {"kernel": -2, "embedding": -1}


def is_int8(leaf: Any) -> bool:
    """Whether a leaf is a QArray, of arrays or of shapes."""
    return hasattr(leaf, "qvalue")


def quantize(leaf: Array, path: str) -> Any:
    """A kernel [in, out], or one [layers, in, out] of scanned layers, or the table [V, D].

    Raises:
      UserError: if qwix is not installed.
    """
    axes = set(range(leaf.ndim)) - {leaf.ndim + _SUMMED[path.rpartition("/")[2]]}
    return _qwix().quantize(leaf, jnp.int8, channelwise_axes=axes, scale_dtype=jnp.float32)


def dequantize(leaf: Any) -> Array:
    """A QArray as float32; other arrays as they are."""
    return _qwix().dequantize(leaf) if is_int8(leaf) else leaf


def rows(table: Any, ids: Any) -> Array:
    """Rows [..., D] of a table [V, D]; of one in int8, only these are made float32."""
    return dequantize(jax.tree.map(lambda x: jnp.take(x, ids, axis=0, mode="clip"), table))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, kernel: Any, dtype: jnp.dtype) -> Array:
    """x [..., in], of `dtype`, times a QArray [in, out]: float32, differentiated in x alone.

    Numbers of eight bits are exact in any `dtype`; scales multiply the sums.
    """
    return _product(x, kernel.qvalue, 0) * kernel.scale[0]


def _forward(x: Array, kernel: Any, dtype: jnp.dtype) -> tuple[Array, Any]:
    return matmul(x, kernel, dtype), kernel


def _backward(dtype: jnp.dtype, kernel: Any, gradient: Array) -> tuple[Array, None]:
    scaled = (gradient * kernel.scale[0]).astype(dtype)
    return _product(scaled, kernel.qvalue, 1).astype(dtype), None


matmul.defvjp(_forward, _backward)


def _product(x: Array, numbers: Array, axis: int) -> Array:
    # Else the compiler may cast all layers ahead of time, keep them from the forward pass for the
    # backward pass, or take the casts out of the loop that decodes.
    x, numbers = jax.lax.optimization_barrier((x, numbers))
    contract = (((x.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(
        x, numbers.astype(x.dtype), contract, preferred_element_type=jnp.float32
    )


def _qwix() -> Any:
    try:
        import qwix
    except ImportError as error:
        raise UserError(
            "BACKBONE_DTYPE = 'int8': needs qwix; pip install 'prompt-tuning[int8]'"
        ) from error
    return qwix
