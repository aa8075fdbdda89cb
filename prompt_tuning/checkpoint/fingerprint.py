"""Which backbone it is: a fingerprint of its values, the same wherever and however they lie."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from prompt_tuning.runtime import distributed
from prompt_tuning.t5 import int8, stacked_leaves
from prompt_tuning.t5.paths import flatten


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run keeps of its backbone.

    Attributes:
      path: of the weights, as the run was given it; "" for random ones.
      fingerprint: see `of`.
      leaves: shape and number of the leaves by path, with * for the number of the layer.
    """

    path: str
    fingerprint: str
    leaves: Mapping[str, str]


def identity(
    path: object, params: Mapping[str, Any], sums: Mapping[str, np.ndarray] = MappingProxyType({})
) -> Identity:
    """The identity of the backbone's leaves (see `of`) that were read from a path."""
    leaves: dict[str, list[tuple[int, ...]]] = {}
    for name, leaf in flatten(params).items():
        leaves.setdefault(re.sub(r"_\d+", "_*", name), []).append(leaf.shape)
    shown = {name: f"{len(shapes)} x {shapes[0]}" for name, shapes in leaves.items()}
    return Identity(str(path or ""), of(params, sums), shown)


def of(params: Mapping[str, Any], sums: Mapping[str, np.ndarray] = MappingProxyType({})) -> str:
    """16 hexadecimal digits from the path, shape and values of each leaf.

    Values are rounded to bfloat16 first: weights in float32 and their bfloat16 copy are one
    backbone. Integer sums do not hang on the order of addition, so that any sharding and number of
    devices agree. Leaves stay where they are; nothing but a number of each comes to the host.

    Args:
      params: the backbone's leaves, nested or by path; floating-point arrays of JAX or NumPy, or
        in int8.
      sums: `sum_of` leaves as they were before they became int8, by their paths in files.
    """
    parts, found = [], []
    for path, leaf in flatten(params).items():
        names = _names(path, leaf)
        one = names == [path]
        parts.append((names, leaf.shape if one else leaf.shape[1:]))
        if all(name in sums for name in names):
            found.append(np.stack([sums[name] for name in names]))
        else:
            # One at a time: simulated devices can stall where several sums wait for each other.
            found.append(distributed.to_host((_sum if one else _sums)(int8.dequantize(leaf))))
    lines = (
        f"{name} {shape} {value:08x}"
        for (names, shape), values in zip(parts, found, strict=True)
        for name, value in zip(names, np.atleast_1d(values), strict=True)
    )
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def sum_of(leaf: Array) -> np.ndarray:
    """What the fingerprint is made of, for a leaf as it is in files: a uint32."""
    return distributed.to_host(_sum(leaf))


def _names(path: str, leaf: Array) -> list[str]:
    """The leaf's names in files: scanned layers are one leaf in memory."""
    return list(stacked_leaves.unstack({path: range(leaf.shape[0] if leaf.shape else 0)}))


@jax.jit
def _sum(leaf: Array) -> Array:
    """The sum modulo 2^32 of a mix of each value's bits and place (MurmurHash3's finaliser)."""
    bits = lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = place * jnp.uint32(0x9E3779B1) ^ bits * jnp.uint32(0x85EBCA77)
    mixed = (mixed ^ mixed >> 16) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ mixed >> 13) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ mixed >> 16, dtype=jnp.uint32)


_sums = jax.jit(jax.vmap(_sum))
