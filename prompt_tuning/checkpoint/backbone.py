"""Backbone weights by path: T5X-native checkpoints, or our own single `.safetensors` file."""

from collections.abc import Mapping

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
    scheme, slashes, _ = str(path).partition("://")
    if slashes and scheme not in SCHEMES:
        raise CheckpointError(f"{path}: checkpoints are read from a local path, gs:// or s3://")
    path = epath.Path(path).expanduser()
    if path.suffix == ".safetensors":
        return load_safetensors(path, wanted)
    checkpoint = t5x.open_checkpoint(path)
    check_fits(
        checkpoint.target_shapes, _shapes(wanted), path=path, ignore=lambda name: "/prompt/" in name
    )
    return t5x.read_leaves(checkpoint, wanted)


def save(path: epath.PathLike, params: Mapping[str, jax.Array], dtype: str = "bfloat16") -> None:
    """Writes a backbone (flat paths) as one `.safetensors` file in `dtype`."""
    arrays = {name: np.asarray(leaf).astype(jnp.dtype(dtype)) for name, leaf in params.items()}
    with renamed_when_done(path) as temporary:
        temporary.write_bytes(serialize(arrays))


def load_safetensors(
    path: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads exactly the leaves of `wanted` from a `.safetensors` file, as `load` does."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        with safe_open(path, "numpy") as file:
            available = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
            check_fits(available, _shapes(wanted), path=path)
            return {
                name: jax.device_put(file.get_tensor(name).astype(leaf.dtype), leaf.sharding)
                for name, leaf in wanted.items()
            }
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def _shapes(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in wanted.items()}
