"""Leaves of scanned layers (`Config.scan_layers`): stacked in memory, one per layer in files."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_STACKED = re.compile(r"(encoder|decoder)/layers/")


def layer_shapes(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.ShapeDtypeStruct]:
    """Takes shapes with shardings from the paths in memory to the paths in files."""
    in_files: dict[str, jax.ShapeDtypeStruct] = {}
    for path, leaf in shapes.items():
        if _STACKED.match(path):
            layer = jax.tree.map(_layer_shape, leaf)
            in_files |= dict.fromkeys(_names(path, leaf.shape[0]), layer)
        else:
            in_files[path] = leaf
    return in_files


def _layer_shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    spec = P(*leaf.sharding.spec[1:])
    sharding = NamedSharding(leaf.sharding.mesh, spec, memory_kind=leaf.sharding.memory_kind)
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)


def stack(
    leaves: dict[str, jax.Array], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Stacks leaves read from files into those of `shapes`, on their shardings.

    Empties `leaves` on the way, so that at most one stacked leaf is in memory twice.
    """
    in_memory = {}
    for path, leaf in shapes.items():
        if _STACKED.match(path):
            layers = [leaves.pop(name) for name in _names(path, leaf.shape[0])]
            places = jax.tree.map(lambda part: part.sharding, leaf)
            in_memory[path] = jax.jit(_stacked, out_shardings=places)(layers)
        else:
            in_memory[path] = leaves.pop(path)
    return in_memory


def _stacked(leaves: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *leaves)


def unstack(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Takes leaves from the paths in memory to the paths in files, one per layer."""
    in_files: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if _STACKED.match(path):
            in_files |= dict(zip(_names(path, len(leaf)), leaf, strict=True))
        else:
            in_files[path] = leaf
    return in_files


def _names(path: str, layers: int) -> list[str]:
    return [_STACKED.sub(rf"\1/layers_{i}/", path) for i in range(layers)]
