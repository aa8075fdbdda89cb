"""Reads arrays, or parts of them, of a T5X checkpoint, including layers of scanned stacks.

Scanned stacks (t5x.examples.scalable_t5, Flaxformer's `scan_layers`) store all layers of a stack in
one array, along axis 1, under `encoder/encoder/...` and `decoder/decoder/...`. Attention kernels
may have separate axes for heads and head_dim.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

_STACKED = re.compile(r"target/(encoder|decoder)/\1/(.+)")
_ATTENTION = re.compile(r"target/.+ttention/(query|key|value|out)/kernel")
_TABLE = "relpos_bias/rel_embedding"
_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """One array of a checkpoint.

    Attributes:
      shape: shape of the array.
      dtype: dtype of its values, of NumPy or ml_dtypes; bfloat16 also if stored as uint16.
      source: the array itself if the index contains it, else its tensorstore spec.
      layer: index into axis 1 of a scanned source; None if the source is not scanned.
      heads: axis of `shape` that the source stores as two, heads and head_dim; None for none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    source: np.ndarray | Mapping[str, Any]
    layer: int | None = None
    heads: int | None = None


def opened(leaf: Leaf, context: ts.Context | None = None) -> ts.Future:
    """Opens the source, as a future."""
    if isinstance(leaf.source, np.ndarray):
        return ts.Future(ts.array(leaf.source))
    # By default a missing chunk is read as zeros.
    return ts.open({**leaf.source, "fill_missing_data_reads": False}, read=True, context=context)


class Part:
    """A rectangle of a leaf that is being read."""

    def __init__(self, leaf: Leaf, store: Any, index: tuple[slice, ...]) -> None:
        """Starts to read `index` of `leaf` from its opened source `store`."""
        self._leaf, self._index = leaf, index
        if not isinstance(leaf.source, np.ndarray):
            _check_claims(leaf, index, store.chunk_layout.read_chunk.shape or ())
        if leaf.layer is not None:
            store = store[:, leaf.layer]
        if leaf.heads is not None:
            index = _by_heads(index, leaf.heads, leaf.shape, store.shape[leaf.heads + 1])
        self._read = store[index].read()

    def result(self) -> np.ndarray:
        """Waits for the rectangle; returns it in the leaf's dtype."""
        values = self._read.result().view(self._leaf.dtype)  # version 2 has bfloat16 in uint16
        axis = self._leaf.heads
        if axis is None:
            return values
        width = values.shape[axis + 1]
        joined = values.reshape(*values.shape[:axis], -1, *values.shape[axis + 2 :])
        start, stop, _ = self._index[axis].indices(self._leaf.shape[axis])
        before = start // width * width  # whole heads were read
        return joined[(slice(None),) * axis + (slice(start - before, stop - before),)]


def _check_claims(leaf: Leaf, index: tuple[slice, ...], chunk: tuple[int, ...]) -> None:
    """Refuses damaged metadata: tensorstore ends the process if it cannot allocate memory."""
    part = [len(range(size)[each]) for size, each in zip(leaf.shape, index, strict=True)]
    if max(math.prod(part), math.prod(chunk)) * leaf.dtype.itemsize > _MEMORY:
        raise ValueError(f"{leaf.shape} in chunks of {chunk} would take more than all memory")


def unscanned(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Renames and reshapes a checkpoint's leaves to those of unscanned layers.

    Args:
      leaves: leaves by path, `target/...` and others; the others are returned unchanged.

    Returns:
      One leaf per layer for each stacked array; only relative position tables are read. If all
      layers of a stack have the same table, it becomes T5's single table; otherwise each layer
      keeps its own.
    """
    unstacked = {}
    for name, leaf in leaves.items():
        match = _STACKED.fullmatch(name)
        if match is None or len(leaf.shape) < 2:
            unstacked[name] = _joined(name, leaf)
            continue
        stack, rest = match.groups()
        rows, count, *others = leaf.shape
        layer = dataclasses.replace(leaf, shape=(rows, *others), layer=0)
        layers = [_joined(name, dataclasses.replace(layer, layer=i)) for i in range(count)]
        if rest == _TABLE and _all_equal(read(leaf)):
            unstacked[f"target/{stack}/{_TABLE}"] = layers[0]
        else:
            names = [f"target/{stack}/layers_{i}/{rest}" for i in range(count)]
            unstacked |= dict(zip(names, layers, strict=True))
    return unstacked


def read(leaf: Leaf) -> np.ndarray:
    """Reads the whole array."""
    return Part(leaf, opened(leaf).result(), (slice(None),) * len(leaf.shape)).result()


def _all_equal(tables: np.ndarray) -> bool:
    return bool((tables == tables[:, :1]).all())


def _joined(name: str, leaf: Leaf) -> Leaf:
    """Joins heads and head_dim of an attention kernel; returns other leaves unchanged."""
    match = _ATTENTION.fullmatch(name)
    if match is None or len(leaf.shape) != 3:
        return leaf
    a, b, c = leaf.shape
    if match[1] == "out":
        return dataclasses.replace(leaf, shape=(a * b, c), heads=0)
    return dataclasses.replace(leaf, shape=(a, b * c), heads=1)


def _by_heads(
    index: tuple[slice, ...], axis: int, shape: tuple[int, ...], width: int
) -> tuple[slice, ...]:
    """`index` with `axis` split into heads, `width` wide: all heads that it touches, in full."""
    start, stop, _ = index[axis].indices(shape[axis])
    heads = slice(start // width, -(-stop // width))
    return (*index[:axis], heads, slice(None), *index[axis + 1 :])
