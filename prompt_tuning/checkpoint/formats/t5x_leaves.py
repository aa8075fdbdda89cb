"""One array of a T5X checkpoint, also where it lies in a scanned stack, and the reading of parts.

Scanned stacks (t5x.examples.scalable_t5, Flaxformer's `scan_layers`) hold the layers of a stack in
one array each, at axis 1, under `encoder/encoder/...` and `decoder/decoder/...`. Attention's
kernels may keep heads and head_dim apart.
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
      shape: its shape.
      dtype: what its values are, NumPy's or ml_dtypes'; bfloat16 also where stored as uint16.
      source: the array itself where the index holds it, else its tensorstore spec.
      layer: its place in the source's axis 1, of a scanned stack; None: there is no such axis.
      heads: the axis of `shape` that the source keeps as two, heads and head_dim; None: none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    source: np.ndarray | Mapping[str, Any]
    layer: int | None = None
    heads: int | None = None


def opened(leaf: Leaf, context: ts.Context | None = None) -> ts.Future:
    """A future of the source."""
    if isinstance(leaf.source, np.ndarray):
        return ts.Future(ts.array(leaf.source))
    # By default a chunk that was not copied would be read as zeros.
    return ts.open({**leaf.source, "fill_missing_data_reads": False}, read=True, context=context)


class Part:
    """A rectangle of a leaf, under way from its source."""

    def __init__(self, leaf: Leaf, store: Any, index: tuple[slice, ...]) -> None:
        """Begins to read `index` of `leaf`, whose opened source is `store`."""
        self._leaf, self._index = leaf, index
        if not isinstance(leaf.source, np.ndarray):
            _check_claims(leaf, index, store.chunk_layout.read_chunk.shape or ())
        if leaf.layer is not None:
            store = store[:, leaf.layer]
        if leaf.heads is not None:
            index = _apart(index, leaf.heads, leaf.shape, store.shape[leaf.heads + 1])
        self._read = store[index].read()

    def result(self) -> np.ndarray:
        """Waits for the rectangle, and has it in the leaf's dtype."""
        found = self._read.result().view(self._leaf.dtype)  # version 2 has bfloat16 in uint16
        axis = self._leaf.heads
        if axis is None:
            return found
        width = found.shape[axis + 1]
        joined = found.reshape(*found.shape[:axis], -1, *found.shape[axis + 2 :])
        start, stop, _ = self._index[axis].indices(self._leaf.shape[axis])
        before = start // width * width  # whole heads were read
        return joined[(slice(None),) * axis + (slice(start - before, stop - before),)]


def _check_claims(leaf: Leaf, index: tuple[slice, ...], chunk: tuple[int, ...]) -> None:
    """Refuses damaged metadata: where it gets no memory, tensorstore ends the process."""
    part = [len(range(size)[each]) for size, each in zip(leaf.shape, index, strict=True)]
    if max(math.prod(part), math.prod(chunk)) * leaf.dtype.itemsize > _MEMORY:
        raise ValueError(f"{leaf.shape} in chunks of {chunk} would take more than all memory")


def unscanned(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """A checkpoint's leaves under the names and shapes of unscanned layers.

    Args:
      leaves: by flat name, `target/...` and others; the others stay as they are.

    Returns:
      For each stacked array a leaf for each layer; only relative position tables are read. A stack
      whose layers have equal tables gets the one that T5 has; tables that differ stay with their
      layers.
    """
    found = {}
    for name, leaf in leaves.items():
        match = _STACKED.fullmatch(name)
        if match is None or len(leaf.shape) < 2:
            found[name] = _joined(name, leaf)
            continue
        stack, rest = match.groups()
        rows, count, *others = leaf.shape
        layer = dataclasses.replace(leaf, shape=(rows, *others), layer=0)
        layers = [_joined(name, dataclasses.replace(layer, layer=i)) for i in range(count)]
        if rest == _TABLE and _all_equal(read(leaf)):
            found[f"target/{stack}/{_TABLE}"] = layers[0]
        else:
            found |= {f"target/{stack}/layers_{i}/{rest}": each for i, each in enumerate(layers)}
    return found


def read(leaf: Leaf) -> np.ndarray:
    """The whole array."""
    return Part(leaf, opened(leaf).result(), (slice(None),) * len(leaf.shape)).result()


def _all_equal(tables: np.ndarray) -> bool:
    return bool((tables == tables[:, :1]).all())


def _joined(name: str, leaf: Leaf) -> Leaf:
    """An attention kernel with heads and head_dim as one side; other leaves as they are."""
    match = _ATTENTION.fullmatch(name)
    if match is None or len(leaf.shape) != 3:
        return leaf
    a, b, c = leaf.shape
    if match[1] == "out":
        return dataclasses.replace(leaf, shape=(a * b, c), heads=0)
    return dataclasses.replace(leaf, shape=(a, b * c), heads=1)


def _apart(
    index: tuple[slice, ...], axis: int, shape: tuple[int, ...], width: int
) -> tuple[slice, ...]:
    """`index` in the whole heads that it touches; heads are `width` wide."""
    start, stop, _ = index[axis].indices(shape[axis])
    heads = slice(start // width, -(-stop // width))
    return (*index[:axis], heads, slice(None), *index[axis + 1 :])
