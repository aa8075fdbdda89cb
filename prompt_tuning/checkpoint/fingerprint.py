"""Fingerprints a backbone by its values, independently of format, dtype and sharding."""

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

from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime import distributed
from prompt_tuning.transformer import int8, stacked_leaves
from prompt_tuning.transformer.paths import flatten


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run records of its backbone.

    Attributes:
      path: path of the weights as given to the run; "" for random ones.
      fingerprint: value of `of`.
      leaves: number and shape of the leaves by path, with * in place of the layer's number.
    """

    path: str
    fingerprint: str
    leaves: Mapping[str, str]


def identity(
    path: object, params: Mapping[str, Any], sums: Mapping[str, np.ndarray] = MappingProxyType({})
) -> Identity:
    """Identifies a backbone by the path that it was read from, and by its leaves, as for `of`."""
    leaves: dict[str, list[tuple[int, ...]]] = {}
    for name, leaf in flatten(params).items():
        leaves.setdefault(re.sub(r"_\d+", "_*", name), []).append(leaf.shape)
    summary = {name: f"{len(shapes)} x {shapes[0]}" for name, shapes in leaves.items()}
    return Identity(str(path or ""), of(params, sums), summary)


def of(params: Mapping[str, Any], sums: Mapping[str, np.ndarray] = MappingProxyType({})) -> str:
    """Computes 16 hexadecimal digits from the path, shape and values of each leaf.

    Values are rounded to bfloat16 first, so that float32 weights and their bfloat16 copy are one
    backbone. Sums of integers do not depend on the order of addition, so that any sharding and
    number of devices agree. Leaves stay where they are; only one number per leaf and layer is
    copied to the host.

    Args:
      params: leaves of the backbone, nested or by path: floating-point arrays of JAX or NumPy, or
        int8 matrices.
      sums: `sum_of` of leaves before they were converted, by path in files.

    Raises:
      CheckpointError: If a leaf has a NaN or an infinity; the message names the leaf.
    """
    parts, sums_of_parts = [], []
    for path, leaf in flatten(params).items():
        names = _names(path, leaf)
        single = names == [path]
        parts.append((names, leaf.shape if single else leaf.shape[1:]))
        if all(name in sums for name in names):
            sums_of_parts.append(np.stack([sums[name] for name in names]))
        else:
            # One at a time: simulated devices can stall where several sums wait for each other.
            add_up = _sum if single else _sums
            values, finite = add_up(int8.dequantize(leaf))
            _check_finite(path, finite)
            sums_of_parts.append(distributed.to_host(values))
    lines = (
        f"{name} {shape} {value:08x}"
        for (names, shape), values in zip(parts, sums_of_parts, strict=True)
        for name, value in zip(names, np.atleast_1d(values), strict=True)
    )
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def sum_of(path: str, leaf: Array) -> np.ndarray:
    """A leaf's contribution to the fingerprint, a uint32; the leaf is one of those in files.

    Raises:
      CheckpointError: As `of`.
    """
    value, finite = _sum(leaf)
    _check_finite(path, finite)
    return distributed.to_host(value)


def _check_finite(path: str, finite: Array) -> None:
    if not distributed.to_host(finite).all():
        raise CheckpointError(
            f"the backbone's leaf {path} has a NaN or an infinity; use another checkpoint"
        )


def _names(path: str, leaf: Array) -> list[str]:
    """Paths of the leaf in files; scanned layers are one leaf in memory and many in files."""
    return list(stacked_leaves.unstack({path: range(leaf.shape[0] if leaf.shape else 0)}))


@jax.jit
def _sum(leaf: Array) -> tuple[Array, Array]:
    """Sums, modulo 2^32, a hash of each value's bits and index (MurmurHash3's finaliser).

    Also returns whether all values are finite, which the same pass over the leaf finds.
    """
    bits = lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = index * jnp.uint32(0x9E3779B1) ^ bits * jnp.uint32(0x85EBCA77)
    mixed = (mixed ^ mixed >> 16) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ mixed >> 13) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ mixed >> 16, dtype=jnp.uint32), jnp.isfinite(leaf).all()


_sums = jax.jit(jax.vmap(_sum))
