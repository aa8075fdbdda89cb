"""Backbone weights by path: T5X-native checkpoints, or our own single `.safetensors` file."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from prompt_tuning.checkpoint import t5x
from prompt_tuning.checkpoint.errors import CheckpointError
from prompt_tuning.checkpoint.files import renamed_when_done
from prompt_tuning.checkpoint.fit import check_fits

SCHEMES = ("gs", "s3")


def load(path: epath.PathLike, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads exactly the backbone's leaves, each straight onto its sharding.

    Args:
      path: a T5X-native checkpoint (local or `gs://`), or a `.safetensors` file of `save`.
      wanted: path to shape, dtype (to cast to) and sharding.

    Raises:
      CheckpointError: if there is no such checkpoint, or leaves are missing, extra or mis-shaped;
        an original prompt-tuning checkpoint may have its prompt beside the backbone.
    """
    path = _place(path)
    if path.suffix == ".safetensors":
        return load_safetensors(path, wanted)
    checkpoint = t5x.open_checkpoint(path)
    check_fits(
        checkpoint.target_shapes, _shapes(wanted), path=path, ignore=lambda name: "/prompt/" in name
    )
    return t5x.read_leaves(checkpoint, wanted)


def load_leaf(path: epath.PathLike, name: str) -> np.ndarray:
    """Reads one leaf as float32, in whatever shape it has there.

    Args:
      path: as for `load`.
      name: the leaf's path, such as `token_embedder/embedding`.

    Raises:
      CheckpointError: if there is no such checkpoint, or no such leaf in it.
    """
    path = _place(path)
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            if name in file.keys():  # noqa: SIM118 (no mapping)
                return file.get_tensor(name).astype(np.float32)
    else:
        checkpoint = t5x.open_checkpoint(path)
        if shape := checkpoint.target_shapes.get(name):
            wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32)}
            return np.asarray(t5x.read_leaves(checkpoint, wanted)[name])
    raise CheckpointError(f"{path}: holds no {name}; give a checkpoint of a T5 backbone")


def save(path: epath.PathLike, params: Mapping[str, jax.Array], dtype: str = "bfloat16") -> None:
    """Writes a backbone (flat paths) as one `.safetensors` file in `dtype`."""
    arrays = {name: np.asarray(leaf).astype(jnp.dtype(dtype)) for name, leaf in params.items()}
    with renamed_when_done(path) as temporary:
        temporary.write_bytes(serialize(arrays))


def load_safetensors(
    path: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads exactly the leaves of `wanted` from a `.safetensors` file, as `load` does."""
    with _opened(path) as file:
        available = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
        check_fits(available, _shapes(wanted), path=path)
        return {
            name: jax.device_put(file.get_tensor(name).astype(leaf.dtype), leaf.sharding)
            for name, leaf in wanted.items()
        }


def _place(path: epath.PathLike) -> epath.Path:
    scheme, slashes, _ = str(path).partition("://")
    if slashes and scheme not in SCHEMES:
        raise CheckpointError(f"{path}: checkpoints are read from a local path, gs:// or s3://")
    return epath.Path(path).expanduser()


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def _shapes(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in wanted.items()}
