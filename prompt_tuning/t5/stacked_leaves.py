"""Leaves of scanned layers (`T5Config.scan_layers`): one in memory, one a layer in files."""

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
    """Shapes by path in memory, with shardings, to those by path in files."""
    found = {}
    for path, leaf in shapes.items():
        if not _STACKED.match(path):
            found[path] = leaf
            continue
        found |= dict.fromkeys(_names(path, leaf.shape[0]), jax.tree.map(_of_one, leaf))
    return found


def _of_one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    spec = P(*leaf.sharding.spec[1:])
    sharding = NamedSharding(leaf.sharding.mesh, spec, memory_kind=leaf.sharding.memory_kind)
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)


def stack(
    leaves: dict[str, jax.Array], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Leaves by path in files to those of `shapes`, onto their shardings.

    Empties `leaves` as it goes, so that no more than one stacked leaf is there twice.
    """
    found = {}
    for path, leaf in shapes.items():
        if _STACKED.match(path):
            of_layers = [leaves.pop(name) for name in _names(path, leaf.shape[0])]
            places = jax.tree.map(lambda part: part.sharding, leaf)
            found[path] = jax.jit(_stacked, out_shardings=places)(of_layers)
        else:
            found[path] = leaves.pop(path)
    return found


def _stacked(leaves: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *leaves)


def unstack(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path in memory to those by path in files; others stay as they are."""
    found: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if _STACKED.match(path):
            found |= dict(zip(_names(path, len(leaf)), leaf, strict=True))
        else:
            found[path] = leaf
    return found


def _names(path: str, layers: int) -> list[str]:
    return [_STACKED.sub(rf"\1/layers_{i}/", path) for i in range(layers)]
