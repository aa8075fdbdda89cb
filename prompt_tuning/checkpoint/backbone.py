"""Reads backbone weights by path, from T5X, Hugging Face or our `.safetensors` format."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from prompt_tuning.checkpoint import fingerprint
from prompt_tuning.checkpoint.fit import Shape, check_fits
from prompt_tuning.checkpoint.formats import huggingface, safetensors_file, t5x, t5x_orbax
from prompt_tuning.checkpoint.formats.safetensors_file import Array, Stored
from prompt_tuning.errors import CheckpointError
from prompt_tuning.sharding import place
from prompt_tuning.transformer.config import Config

SCHEMES = ("gs", "s3")


def load(
    path: epath.PathLike,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    finish: Callable[[str, jax.Array], Any] | None = None,
) -> dict[str, Any]:
    """Reads exactly the backbone's leaves, each directly onto its sharding.

    Args:
      path: T5X checkpoint, native or Orbax (local or `gs://`); a `.safetensors` file of `save`; or
        a folder, index or `.safetensors` file that transformers saved.
      wanted: shape, dtype to cast to and sharding of each leaf, by path.
      finish: function from path and leaf to the value to keep, called before the next leaf is
        read; None to keep the leaf.

    Raises:
      CheckpointError: if there is no such checkpoint, or leaves are missing, unexpected or
        mis-shaped. The prompt in a checkpoint of the original code is ignored.
    """
    read = _reader(_location(path), _shapes(wanted))
    if finish is None:
        return read(wanted)
    return {name: finish(name, read({name: leaf})[name]) for name, leaf in wanted.items()}


def _reader(
    path: epath.Path, shapes: Mapping[str, Shape]
) -> Callable[[Mapping[str, jax.ShapeDtypeStruct]], dict[str, jax.Array]]:
    if _in_safetensors(path):
        return functools.partial(_onto_devices, open_leaves(path, shapes))
    checkpoint = open_t5x(path)
    _check_fits_t5x(checkpoint, shapes)
    return functools.partial(t5x.read_leaves, checkpoint)


def check_config(path: epath.PathLike, config: Config) -> None:
    """Checks that the `config.json` of a checkpoint, if it has one, describes a configuration.

    Raises:
      CheckpointError: as `huggingface.check_config`.
    """
    huggingface.check_config(_location(path), config)


def fingerprint_of(path: epath.PathLike, config: Config) -> str:
    """The fingerprint of a backbone's weights; reads all of them, leaf by leaf, once.

    Args:
      path: checkpoint, as for `load`.
      config: configuration of the backbone.

    Raises:
      CheckpointError: as `load`.
    """
    return _fingerprint_of(str(path), dataclasses.replace(config, scan_layers=False), _state(path))


@functools.lru_cache(8)
def _fingerprint_of(path: str, config: Config, state: object) -> str:
    leaves = open_leaves(path, huggingface.shapes_of(config))
    sums = {
        name: fingerprint.sum_of(name, jnp.asarray(np.asarray(leaf)))
        for name, leaf in leaves.items()
    }
    return fingerprint.of(leaves, sums)


def _state(path: epath.PathLike) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a checkpoint's files on a local disk."""
    top = os.path.expanduser(os.fspath(path))
    files = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
    stats = ((file, os.stat(file)) for file in files or [top] if os.path.isfile(file))
    return tuple(sorted((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


def open_leaves(path: epath.PathLike, shapes: Mapping[str, Shape]) -> dict[str, Stored]:
    """Opens a checkpoint's leaves, to be read one by one on the host.

    Args:
      path: checkpoint, as for `load`.
      shapes: shapes of all leaves of the backbone, by path.

    Raises:
      CheckpointError: as `load`.
    """
    path = _location(path)
    if not _in_safetensors(path):
        checkpoint = open_t5x(path)
        _check_fits_t5x(checkpoint, shapes)
        return {name: _t5x_leaf(checkpoint, name) for name in shapes}
    tensors = huggingface.tensors_at(path)
    if huggingface.uses_names(tensors):
        return huggingface.leaves_of(path, tensors, shapes)
    check_fits(_shapes(tensors), shapes, path=path)
    return {name: tensors[name] for name in shapes}


def load_leaf(path: epath.PathLike, name: str) -> np.ndarray:
    """Reads one leaf as float32, in the shape in which it is stored.

    Args:
      path: checkpoint, as for `load`.
      name: path of the leaf, such as `token_embedder/embedding`.

    Raises:
      CheckpointError: if there is no such checkpoint, or no such leaf in it.
    """
    path = _location(path)
    if not _in_safetensors(path):
        checkpoint = open_t5x(path)
        if name in checkpoint.target_shapes:
            return np.asarray(_t5x_leaf(checkpoint, name)).astype(np.float32)
    else:
        tensors = huggingface.tensors_at(path)
        if name in tensors:
            return np.asarray(tensors[name]).astype(np.float32)
        theirs = huggingface.name_in(huggingface.names_of(tensors), tensors, name)
        if theirs in tensors:
            return np.asarray(huggingface.leaf(name, tensors[theirs])).astype(np.float32)
    raise CheckpointError(f"{path}: contains no {name}; give a checkpoint of a backbone")


def open_t5x(path: epath.PathLike) -> t5x.Checkpoint:
    """Opens a T5X checkpoint of either layout.

    Raises:
      CheckpointError: if it is not a T5X checkpoint, or damaged.
    """
    module = t5x_orbax if t5x_orbax.is_folder(path) else t5x
    return module.open_checkpoint(path)


def save(path: epath.PathLike, params: Mapping[str, Array], dtype: str = "bfloat16") -> None:
    """Writes a backbone, leaves by path, as one `.safetensors` file in `dtype`."""
    safetensors_file.write(path, params, np.dtype(dtype))


def load_safetensors(
    path: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads exactly the leaves of `wanted` from a `.safetensors` file with our paths."""
    leaves = safetensors_file.stored(path)
    check_fits(_shapes(leaves), _shapes(wanted), path=path)
    return _onto_devices(leaves, wanted)


def _location(path: epath.PathLike) -> epath.Path:
    scheme, slashes, _ = str(path).partition("://")
    if slashes and scheme not in SCHEMES:
        raise CheckpointError(f"{path}: must be a local path, gs:// or s3://")
    return epath.Path(path).expanduser()


def _in_safetensors(path: epath.Path) -> bool:
    """Whether the format is ours or Hugging Face's; otherwise it is T5X's."""
    huggingface.refuse_pickle(path)
    by_name = path.suffix == safetensors_file.SUFFIX or path.name.endswith(huggingface.INDEX)
    return by_name or huggingface.is_folder(path)


def _t5x_leaf(checkpoint: t5x.Checkpoint, name: str) -> Stored:
    stored = checkpoint.leaves[f"target/{name}"]
    # Integers, which may be the bits of bfloat16, are requested as floats, and so refused.
    floating = jnp.issubdtype(stored.dtype, jnp.floating)
    dtype = stored.dtype if floating else np.dtype(np.float32)
    wanted = {name: jax.ShapeDtypeStruct(stored.shape, dtype)}
    read = functools.partial(t5x.read_leaves, checkpoint, wanted)
    return Stored(stored.shape, dtype, lambda: np.asarray(read()[name]))


def _check_fits_t5x(checkpoint: t5x.Checkpoint, shapes: Mapping[str, Shape]) -> None:
    check_fits(
        checkpoint.target_shapes,
        shapes,
        path=checkpoint.path,
        ignore=lambda name: "/prompt/" in name,
    )


def _onto_devices(
    leaves: Mapping[str, Stored], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    return {
        name: place(np.asarray(leaves[name]).astype(leaf.dtype, copy=False), leaf.sharding)
        for name, leaf in wanted.items()
    }


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
