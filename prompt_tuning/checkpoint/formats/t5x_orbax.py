"""Reads and writes T5X's Orbax checkpoints (its `use_orbax`) through tensorstore.

`checkpoint_STEP/state/_METADATA` is JSON: path and kind of each leaf of {target: parameters, state:
optimizer state}. The arrays are in one OCDBT store, or in one folder per array; the key of an array
is its path with dots.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from prompt_tuning.checkpoint.formats import t5x
from prompt_tuning.checkpoint.formats.safetensors_file import Array, in_dtype
from prompt_tuning.checkpoint.formats.t5x_leaves import Leaf, read
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import folder_when_done

_ITEM = "state"
_METADATA = "_METADATA"
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
_DICT_KEY = 2  # Orbax's number for a key of a dict
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")


def is_folder(path: epath.PathLike) -> bool:
    """Whether a folder is such a checkpoint, intact or not, or the item `state` of one."""
    metadata = _item(epath.Path(path)) / _METADATA
    # Other Orbax checkpoints, such as those of our runs, also have an item `state`.
    return metadata.exists() and b"('target'" in metadata.read_bytes()


def open_checkpoint(path: epath.PathLike) -> t5x.Checkpoint:
    """Opens an Orbax checkpoint of T5X; `t5x.read_leaves` reads its parameters.

    Args:
      path: `checkpoint_STEP` folder or its `state`, local or `gs://`.

    Raises:
      CheckpointError: if it is damaged, or contains no parameters of T5X.
    """
    path = epath.Path(path)
    with t5x.explained(path, f"its {_METADATA} is damaged, or not from T5X"):
        metadata = json.loads((_item(path) / _METADATA).read_text())
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        names = [_path(entry) for entry in metadata["tree_metadata"].values() if _is_array(entry)]
    if not any(name[0] == "target" for name in names):
        raise CheckpointError(f"{path}: contains no parameters; give a checkpoint of a T5X model")
    ocdbt = (_item(path) / "manifest.ocdbt").exists()  # older writers do not record it
    specs = {
        "/".join(name): {"driver": driver, "kvstore": _kvstore(_item(path), name, ocdbt)}
        for name in names
    }
    with t5x.explained(path, "its arrays are missing or damaged"):
        # All are requested before the first is awaited, since latency dominates.
        stores = {name: ts.open(spec, read=True) for name, spec in specs.items()}
        leaves = {name: _leaf(specs[name], store.result()) for name, store in stores.items()}
        step = leaves.get("state/step")
        return t5x.checkpoint_of(path, step and read(step), leaves)


def write_checkpoint(
    path: epath.PathLike, params: Mapping[str, Array], *, step: int, dtype: Any = np.float32
) -> None:
    """Writes parameters as T5X with `use_orbax` does, with one array in memory at a time.

    The folder gets its name once it is complete. To be called by a single process, which must be
    able to address the arrays in full.

    Args:
      path: local folder to create, `.../checkpoint_STEP`; its parents are created as well.
      params: arrays by path without `target/`; they are cast to `dtype`.
      step: number of training steps.
      dtype: dtype to write.

    Raises:
      CheckpointError: if `path` exists, an array cannot be read, a value is too large for `dtype`,
        or the disk is full.
    """
    shapes = {f"target/{name}": list(array.shape) for name, array in params.items()}
    metadata = {
        "tree_metadata": dict(_entry(*each) for each in (shapes | {"state/step": []}).items()),
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    with t5x.explained(epath.Path(path), *t5x.UNWRITTEN), folder_when_done(path) as temporary:
        item = temporary / _ITEM
        item.mkdir()
        for name, array in params.items():
            _write(item, f"target/{name}", in_dtype(name, array, np.dtype(dtype)))
        _write(item, "state/step", np.asarray(step, np.int32))
        (item / _METADATA).write_text(json.dumps(metadata))
        handlers = {"item_handlers": {_ITEM: _HANDLER}}
        (temporary / "_CHECKPOINT_METADATA").write_text(json.dumps(handlers))
        # In buckets, which cannot rename, Orbax treats a folder without this file as incomplete.
        for folder in (item, temporary):
            (folder / "commit_success.txt").write_text("commit was successful")


def _item(path: epath.Path) -> epath.Path:
    return path / _ITEM if (path / _ITEM).exists() else path


def _is_array(entry: Mapping[str, Any]) -> bool:
    """Whether a leaf has data; the optimizer state of a frozen parameter has none."""
    return entry["value_metadata"]["value_type"] in _ARRAYS


def _path(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(key["key"]) for key in entry["key_metadata"])


def _kvstore(folder: epath.Path, name: tuple[str, ...], ocdbt: bool) -> dict[str, Any]:
    """Location of an array: in the folder's OCDBT store, or in a folder of its own."""
    key = ".".join(name)
    if "/" in key or key.strip(".") == "":
        raise CheckpointError(
            f"{folder}: {key!r} is not the name of an array; copy the checkpoint again"
        )
    if not ocdbt:
        return t5x.kvstore(folder, key)
    return {"driver": "ocdbt", "base": t5x.kvstore(folder.parent, folder.name), "path": key + "/"}


def _leaf(spec: Mapping[str, Any], store: Any) -> Leaf:
    dtype = np.dtype(store.dtype.numpy_dtype)
    return Leaf(tuple(store.shape), dtype, {**spec, "dtype": dtype.name})


def _entry(name: str, shape: list[int]) -> tuple[str, dict[str, Any]]:
    keys = name.split("/")
    return str(tuple(keys)), {
        "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
        "value_metadata": {
            "value_type": "np.ndarray",  # a jax.Array would also need a file of shardings
            "skip_deserialize": False,
            "write_shape": shape,
        },
    }


def _write(folder: epath.Path, name: str, array: np.ndarray) -> None:
    chunks = t5x.chunks_of(array.shape, array.dtype)
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": _kvstore(folder, tuple(name.split("/")), ocdbt=True),
        "metadata": {
            "shape": list(array.shape),
            "chunks": chunks,
            "compressor": {"id": "zstd", "level": 1},
        },
        "store_data_equal_to_fill_value": True,
    }
    ts.open(spec, create=True).result().write(array).result()
