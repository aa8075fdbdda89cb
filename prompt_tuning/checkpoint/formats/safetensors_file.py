"""Reads and writes `.safetensors` files with one tensor in memory at a time."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import is_remote, renamed_when_done

SUFFIX = ".safetensors"
_DTYPES = {
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


class Array(Protocol):
    """A NumPy or JAX array, or a `Stored` one; `np.asarray` returns its values."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """An array on disk, which `np.asarray` reads each time.

    Attributes:
      shape: shape of the array.
      dtype: floating-point dtype of the array.
      read: function that reads the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def stored(path: epath.Path) -> dict[str, Stored]:
    """Opens the tensors of a file, by name; only the header is read.

    Raises:
      CheckpointError: if the file is missing or damaged, or a tensor is not of floats.
    """
    tensors = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            part = file.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {name} is stored as {part.get_dtype()}; give a checkpoint of "
                    f"floating-point parameters ({', '.join(_DTYPES)})"
                )
            dtype, read = _DTYPES[part.get_dtype()], functools.partial(_read, path, name)
            tensors[name] = Stored(tuple(part.get_shape()), dtype, read)
    return tensors


def write(
    path: epath.PathLike,
    arrays: Mapping[str, Array],
    dtype: np.dtype,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays in `dtype`; the file gets its name once it is complete.

    Raises:
      CheckpointError: as `in_dtype`.
    """
    names = {stored: name for name, stored in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + math.prod(array.shape) * dtype.itemsize
        shape, offsets = list(array.shape), [start, end]
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": offsets}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format requires aligned data
    with renamed_when_done(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, array in arrays.items():
            file.write(in_dtype(name, array, dtype).tobytes())


def in_dtype(name: str, array: Array, dtype: Any) -> np.ndarray:
    """The values of an array in the dtype that a file is written in.

    Raises:
      CheckpointError: if a finite value is too large for it; the message begins with `name`.
    """
    values = np.asarray(array)
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        written = values.astype(dtype)
    if (lost := np.isinf(written) & np.isfinite(values)).any():
        largest = float(np.abs(values[lost]).max())
        raise CheckpointError(
            f"{name}: has the value {largest:.6g}, above {float(jnp.finfo(dtype).max):.6g}, the "
            f"largest of {np.dtype(dtype).name}: it would be infinite; choose another dtype"
        )
    return written


def common_dtype(arrays: Mapping[str, Array]) -> np.dtype:
    """The narrowest dtype that represents all values of float16, bfloat16 and float32 arrays."""
    return np.dtype(jnp.result_type(*{array.dtype for array in arrays.values()}))


def _read(path: epath.Path, name: str) -> np.ndarray:
    with _opened(path) as file:
        return file.get_tensor(name)


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Any]:
    if is_remote(path):
        raise CheckpointError(f"{path}: safetensors files must be on a local disk; copy it there")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
