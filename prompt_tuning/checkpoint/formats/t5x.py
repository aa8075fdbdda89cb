"""Reads and writes T5X's native checkpoints: a msgpack index, and zarr arrays beside it.

The index is serialised by Flax: {version, optimizer: {target: parameters, state: optimizer state}};
some have these two at the top level. A leaf is an array, the tensorstore spec of a folder beside
the index, or nil. `t5x_orbax` has T5X's other layout.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

from prompt_tuning.checkpoint.fit import check_fits
from prompt_tuning.checkpoint.formats.safetensors_file import Array, in_dtype
from prompt_tuning.checkpoint.formats.t5x_leaves import Leaf, Part, opened, unscanned
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import folder_when_done

UNWRITTEN = ("cannot be written", "check access and free disk space")  # for `explained`
_VERSIONS = (2, 3)
_TARGET = "target/"
_CHUNK_BYTES = 64 << 20  # the target of T5X's own writer
_BATCH_ELEMENTS = 1 << 28  # limits the host memory of a read


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint, of which only the index has been read.

    Attributes:
      path: path given to `open_checkpoint`.
      step: number of training steps; None if the index does not record it.
      leaves: leaves by path, `target/encoder/...` and `state/...`, without nil leaves.
    """

    path: epath.Path
    step: int | None
    leaves: Mapping[str, Leaf]

    @property
    def target_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by path without `target/`, as for `check_fits`."""
        named = {name: leaf.shape for name, leaf in self.leaves.items() if name.startswith(_TARGET)}
        return {name.removeprefix(_TARGET): shape for name, shape in named.items()}


def open_checkpoint(path: epath.PathLike) -> Checkpoint:
    """Opens a native T5X checkpoint, version 2 or 3.

    Args:
      path: `checkpoint_STEP` folder or index file, local or `gs://`.

    Raises:
      CheckpointError: if `path` is missing or not such a checkpoint, or its index is damaged.
    """
    path = epath.Path(path)
    with explained(path, "the index is unreadable, damaged or not from T5X"):
        index = _index_file(path)
        content = serialization.msgpack_restore(index.read_bytes())
        version = _checked_version(path, content)
        tree, is_leaf = _tree(path, content), lambda _, value: _is_spec(value)
        flat = traverse_util.flatten_dict(tree, sep="/", is_leaf=is_leaf)
    leaves = {}
    for name, value in flat.items():
        if value is not None:
            with explained(path, f"the entry {name} of the index is invalid"):
                leaves[name] = _leaf(index.parent, version, value)
    step = leaves.get("state/step")
    with explained(path, "arrays of its scanned layers are missing or damaged"):
        return checkpoint_of(path, None if step is None else step.source, leaves)


def checkpoint_of(path: epath.Path, step: Any, leaves: Mapping[str, Leaf]) -> Checkpoint:
    """A checkpoint of stored leaves, renamed to unscanned layers; `step` is an array or None."""
    known = isinstance(step, np.ndarray) and step.shape == () and step.dtype.kind in "iu"
    return Checkpoint(path, int(step) if known else None, MappingProxyType(unscanned(leaves)))


def read_leaves(
    checkpoint: Checkpoint, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads parameters, each directly onto its devices.

    Args:
      checkpoint: opened checkpoint.
      wanted: shape, dtype to cast to and sharding of each parameter, by path without `target/`.
        With a sharding, a process reads only the parts on its devices, each part once.

    Returns:
      Arrays of the wanted shapes, dtypes and shardings, by path.

    Raises:
      CheckpointError: if a parameter is missing, has another shape or kind of number, or its data
        is missing or damaged.
    """
    shapes = {name: struct.shape for name, struct in wanted.items()}
    check_fits(checkpoint.target_shapes, shapes, path=checkpoint.path, ignore=lambda name: True)
    leaves = {name: checkpoint.leaves[_TARGET + name] for name in wanted}
    for name, leaf in leaves.items():
        # A cast from integers would succeed, with wrong values if they are the bits of bfloat16.
        if _is_floating(leaf.dtype) != _is_floating(wanted[name].dtype):
            raise CheckpointError(
                f"{checkpoint.path}: {name} is stored as {leaf.dtype}, expected "
                f"{wanted[name].dtype}; give a checkpoint of floating-point parameters"
            )
    # If shards and chunks differ, shards share chunks: the pool decompresses each chunk once.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 30}})
    arrays: dict[str, jax.Array] = {}
    for names in _batches(wanted):
        batch = {name: (leaves[name], wanted[name]) for name in names}
        arrays |= _read_batch(checkpoint.path, batch, context)
    return arrays


def write_checkpoint(
    path: epath.PathLike,
    params: Mapping[str, Array],
    *,
    step: int,
    dtype: Any = np.float32,
) -> None:
    """Writes parameters as a version-3 checkpoint, which `open_checkpoint` and T5X read.

    One array is in memory at a time, and the folder gets its name once it is complete. To be called
    by a single process, which must be able to address the arrays in full.

    Args:
      path: folder to create, `.../checkpoint_STEP`; its parents are created as well.
      params: arrays by path without `target/`; they are cast to `dtype`.
      step: number of training steps.
      dtype: dtype to write.

    Raises:
      CheckpointError: if `path` exists, an array cannot be read, a value is too large for `dtype`,
        or the disk is full.
    """
    specs = {name: _new_spec(name, x.shape, np.dtype(dtype)) for name, x in params.items()}
    with explained(epath.Path(path), *UNWRITTEN), folder_when_done(path) as temporary:
        for name, array in params.items():
            _write(temporary, specs[name], in_dtype(name, array, np.dtype(dtype)))
        state = {"step": np.asarray(step, np.int32), "param_states": {}}
        tree = {"target": traverse_util.unflatten_dict(specs, sep="/"), "state": state}
        index = serialization.msgpack_serialize({"version": 3, "optimizer": tree})
        (temporary / "checkpoint").write_bytes(index)


@contextlib.contextmanager
def explained(
    path: epath.Path, problem: str, advice: str = "check access, or copy the checkpoint again"
) -> Iterator[None]:
    """Turns any error of storage or of a decoder into a CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # tensorstore appends its whole spec.
        cause = " ".join(str(error).split(" [tensorstore_spec")[0].split()) or type(error).__name__
        raise CheckpointError(f"{path}: {problem} ({cause[:800]}); {advice}") from error


def _index_file(path: epath.Path) -> epath.Path:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; check the checkpoint's path")
    if not path.is_dir():
        return path
    if (path / "checkpoint").exists():
        return path / "checkpoint"
    names = sorted(child.name for child in path.iterdir())
    advice = "give a checkpoint_STEP folder, which holds a file named checkpoint"
    if "_CHECKPOINT_METADATA" in names or "_METADATA" in names:
        advice = "it is an Orbax checkpoint, but not one of a T5X model"
    elif steps := [name for name in names if name.startswith("checkpoint_")]:
        advice = f"give one of the folders in it: {', '.join(steps)}"
    raise CheckpointError(f"{path}: not a native T5X checkpoint; {advice}")


def _checked_version(path: epath.Path, content: Any) -> int:
    content = content if isinstance(content, dict) else {}
    version = content.get("version")
    if not isinstance(version, int) or version not in _VERSIONS:
        raise CheckpointError(
            f"{path}: version {version} of the T5X index is not supported, only 2 and 3; save the "
            "checkpoint again with a newer T5X"
        )
    return version


def _tree(path: epath.Path, content: Mapping[str, Any]) -> dict[str, Any]:
    names = ("target", "state")
    tree = content.get("optimizer", {name: content.get(name) for name in names})
    if not isinstance(tree, dict) or not isinstance(tree.get("target"), dict) or not tree["target"]:
        raise CheckpointError(f"{path}: contains no parameters; give a checkpoint of a T5X model")
    return tree


def _is_spec(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"driver", "kvstore", "metadata"}


def _leaf(folder: epath.Path, version: int, value: Any) -> Leaf:
    if _is_spec(value):
        # Old writers put the dtype into the metadata, and the path at the top level of the spec.
        stored = np.dtype(value["dtype"] if "dtype" in value else value["metadata"]["dtype"])
        shape = tuple(int(size) for size in value["metadata"]["shape"])
        name = value["kvstore"]["path"] if "path" in value["kvstore"] else value["path"]
        # tensorstore compares dtype and shape with those of the array.
        metadata = {"shape": list(shape)}
        source: np.ndarray | dict[str, Any] = {
            "driver": "zarr",
            "dtype": stored.name,
            "kvstore": kvstore(folder, name.rstrip("/")),
            "metadata": metadata,
        }
    else:
        source = array = np.asarray(value)
        stored, shape = array.dtype, array.shape
        if stored.kind in "OSU":
            raise ValueError(f"a {type(value).__name__}, not an array")
    # Version 2 is from before the zarr driver had bfloat16.
    is_bfloat16 = version == 2 and stored == np.uint16
    return Leaf(shape, np.dtype(jnp.bfloat16) if is_bfloat16 else stored, source)


def kvstore(folder: epath.Path, name: str) -> dict[str, str]:
    """Current location of an array; the index has the driver and bucket of its first writer."""
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a folder beside the index")
    location = os.fspath(folder / name)
    if location.startswith("gs://"):
        bucket, _, key = location.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": key + "/"}
    return {"driver": "file", "path": os.path.abspath(location) + "/"}


def _batches(arrays: Mapping[str, Any]) -> Iterator[list[str]]:
    """Groups arrays into batches of at most `_BATCH_ELEMENTS` elements, or of one array."""
    batch: list[str] = []
    total = 0
    for name, array in arrays.items():
        total += math.prod(array.shape)
        if batch and total > _BATCH_ELEMENTS:
            yield batch
            batch, total = [], math.prod(array.shape)
        batch.append(name)
    if batch:
        yield batch


def _read_batch(
    path: epath.Path,
    batch: Mapping[str, tuple[Leaf, jax.ShapeDtypeStruct]],
    context: ts.Context,
) -> dict[str, jax.Array]:
    def each(function: Callable[[str], Any]) -> dict[str, Any]:
        results = {}
        for name in batch:
            with explained(path, f"the array {name} is missing or damaged"):
                results[name] = function(name)
        return results

    # Everything is requested before anything is awaited: with many small arrays latency dominates.
    parts = {name: _parts(wanted) for name, (_, wanted) in batch.items()}
    openings = each(lambda name: opened(batch[name][0], context))
    stores = each(lambda name: openings[name].result())
    reads = each(
        lambda name: {key: Part(batch[name][0], stores[name], i) for key, i in parts[name].items()}
    )
    values = each(
        lambda name: {
            key: read.result().astype(batch[name][1].dtype, copy=False)
            for key, read in reads[name].items()
        }
    )
    return {name: _on_devices(values[name], wanted) for name, (_, wanted) in batch.items()}


def _parts(wanted: jax.ShapeDtypeStruct) -> dict[str, tuple[slice, ...]]:
    """Distinct parts of an array on this process's devices, by text since slices do not hash."""
    if wanted.sharding is None:
        return {"": (slice(None),) * len(wanted.shape)}
    indices = wanted.sharding.addressable_devices_indices_map(wanted.shape).values()
    return {str(index): index for index in indices}


def _on_devices(values: Mapping[str, np.ndarray], wanted: jax.ShapeDtypeStruct) -> jax.Array:
    if wanted.sharding is None:
        return jnp.array(values[""])
    return jax.make_array_from_callback(
        wanted.shape, wanted.sharding, lambda index: values[str(index)], dtype=wanted.dtype
    )


def _is_floating(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def chunks_of(shape: tuple[int, ...], dtype: np.dtype) -> list[int]:
    """Shape of the chunks of a stored array, approximately that of T5X's writer."""
    chunks = list(shape)
    while math.prod(chunks) * dtype.itemsize > _CHUNK_BYTES:
        largest = chunks.index(max(chunks))
        chunks[largest] = -(-chunks[largest] // 2)
    return chunks


def _new_spec(name: str, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    compressor = {"id": "gzip", "level": 1}
    chunks = chunks_of(shape, dtype)
    return {
        "driver": "zarr",
        "dtype": dtype.name,
        "kvstore": {"driver": "file", "path": f"target.{name.replace('/', '.')}/"},
        "metadata": {"chunks": chunks, "compressor": compressor, "shape": list(shape)},
    }


def _write(folder: epath.Path, spec: dict[str, Any], array: np.ndarray) -> None:
    located = kvstore(folder, spec["kvstore"]["path"].rstrip("/"))
    store = ts.open({**spec, "kvstore": located}, create=True).result()
    store.write(array).result()
