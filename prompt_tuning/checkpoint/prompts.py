"""Reads one prompt: `.npy` as in the original code, `.safetensors`, PEFT's, or in a T5X checkpoint.

Writes the first two.
"""

import json
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.formats import peft, safetensors_file, t5x_orbax
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import renamed_when_done

SUFFIXES = (".npy", safetensors_file.SUFFIX)  # of the files that `save` writes
TENSOR = "prompt"
PROMPT_PATH = "encoder/prompt/prompt/prompt"  # of the leaf in a model, and in a T5X checkpoint


def are_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two prompts are one, of which one file may be rounded to float16 or bfloat16."""
    a, b = (np.asarray(prompt, np.float32) for prompt in (one, other))
    if a.shape != b.shape:
        return False
    error = np.abs(a - b)
    return bool((error <= 2.0**-8 * np.maximum(np.abs(a), np.abs(b)) + 2.0**-24).all())


def load(path: epath.PathLike, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Reads a prompt [P, D] as float32; never unpickles.

    Args:
      path: `.safetensors` file, `.npy` file with any suffix, folder of a PEFT adapter with one
        prompt, or T5X checkpoint, native or Orbax, of a model with a prompt.
      shape: required (P, D); None for any.

    Raises:
      CheckpointError: if the file is missing or not a prompt, or has another shape or values that
        are not finite.
    """
    path = epath.Path(path).expanduser()
    if path.is_dir() and peft.is_adapter(path):
        prompt = peft.load_prompt(path)
    elif t5x_orbax.is_folder(path) or (path / "checkpoint").is_file():
        prompt = _in_t5x(path)
    elif path.is_file():
        prompt = _read(path)
    else:
        steps = ", ".join(sorted(step.name for step in path.glob("checkpoint_*")))
        advice = f"give one of {steps}, if it is T5X's" if steps else "check PROMPT_FILE"
        raise CheckpointError(f"{path}: no such prompt file; {advice}")
    if fault := fault_of(prompt, shape[1] if shape else None):
        raise CheckpointError(f"{path}: {fault}")
    if not prompt.size:
        raise CheckpointError(f"{path}: a prompt must have at least one vector, got {prompt.shape}")
    if shape is not None and prompt.shape[0] != shape[0]:
        raise CheckpointError(
            f"{path}: expected {shape[0]} vectors, got {prompt.shape[0]}; "
            f"set PROMPT_LENGTH = {prompt.shape[0]}"
        )
    return prompt.astype(np.float32)


def fault_of(prompt: np.ndarray, width: int | None = None) -> str | None:
    """Why an array is not a prompt [P, D] for a backbone of this width; None if it is one.

    Its values must be finite as float32, and so must the sum of a vector's squares, which the
    backbone's first layer takes. P may be 0.
    """
    if prompt.ndim != 2 or not jnp.issubdtype(prompt.dtype, jnp.floating):
        return (
            f"a prompt is a matrix [P, D] of floats, not {prompt.dtype} {prompt.shape}; give it as "
            "float32"
        )
    if width is not None and prompt.shape[1] != width:
        return (
            f"the prompt is {prompt.shape[1]} wide, the backbone {width}; use a prompt that was "
            "trained on a backbone of this size"
        )
    with np.errstate(over="ignore"):
        values = prompt.astype(np.float32)
        squares = np.square(values).sum(axis=1)
    if not np.isfinite(values).all():
        return "the prompt contains values that are not finite"
    if not np.isfinite(squares).all():
        return f"the prompt has values of up to {np.abs(values).max():.3g}, which overflow float32"
    return None


def from_bytes(content: bytes, name: str) -> tuple[list[np.ndarray], dict[str, str]]:
    """Reads one or more prompts from the bytes of a `.safetensors` file; opens no file.

    Args:
      content: A file with a tensor "prompt", or with "prompt0", "prompt1", ... of an ensemble.
      name: What an error message begins with.

    Returns:
      The prompts [P, D] as float32, in their order, and the file's metadata.

    Raises:
      CheckpointError: if the content is damaged, has other tensors, or a prompt is not a finite
        matrix of floats with at least one vector.
    """
    if content.startswith(b"\x93NUMPY"):
        raise CheckpointError(
            f"{name}: is a .npy file; send a .safetensors file, as prompts.to_bytes makes it"
        )
    tensors = _tensors(content, name)
    names = [TENSOR] if TENSOR in tensors else [f"{TENSOR}{i}" for i in range(len(tensors))]
    if not tensors or set(tensors) != set(names):
        raise CheckpointError(
            f"{name}: expected one tensor {TENSOR!r}, or {TENSOR}0, {TENSOR}1, ... of an ensemble, "
            f"got {sorted(tensors)}"
        )
    prompts = [tensors[each] for each in names]
    for prompt in prompts:
        if fault := fault_of(prompt):
            raise CheckpointError(f"{name}: {fault}")
        if not prompt.size:
            raise CheckpointError(f"{name}: a prompt must have a vector, got {prompt.shape}")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return [prompt.astype(np.float32) for prompt in prompts], header.get("__metadata__", {})


def to_bytes(prompts: Sequence[np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The content of a file that `from_bytes` reads: prompts [P, D], and texts by name.

    The same prompts and texts give the same bytes, so that a checksum of them is a task's name.
    """
    names = [TENSOR] if len(prompts) == 1 else [f"{TENSOR}{i}" for i in range(len(prompts))]
    arrays = [np.ascontiguousarray(prompt, np.float32) for prompt in prompts]
    content = save_safetensors(dict(zip(names, arrays, strict=True)), dict(metadata))
    # The library writes texts in an order that is drawn anew at each call.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8, as the format says
    return len(text).to_bytes(8, "little") + text + content[end:]


def length(path: epath.PathLike) -> int:
    """Reads the length P of a saved prompt [P, D].

    Raises:
      CheckpointError: as `load`.
    """
    return load(path).shape[0]


def save(path: epath.PathLike, prompt: np.ndarray) -> None:
    """Writes a prompt [P, D] as float32: `.safetensors` for that suffix, else `.npy`."""
    prompt = np.ascontiguousarray(safetensors_file.in_dtype(str(path), prompt, np.float32))
    with renamed_when_done(path) as temporary, temporary.open("wb") as file:
        if epath.Path(path).suffix == safetensors_file.SUFFIX:
            file.write(save_safetensors({TENSOR: prompt}))
        else:
            np.save(file, prompt, allow_pickle=False)


def _in_t5x(path: epath.Path) -> np.ndarray:
    if PROMPT_PATH not in backbone.open_t5x(path).target_shapes:
        raise CheckpointError(f"{path}: this T5X checkpoint has no {PROMPT_PATH}; give a prompt")
    return backbone.load_leaf(path, PROMPT_PATH)


def _read(path: epath.Path) -> np.ndarray:
    try:
        if path.suffix == safetensors_file.SUFFIX:
            tensors = _tensors(path.read_bytes(), str(path))
            if set(tensors) != {TENSOR}:
                raise CheckpointError(
                    f"{path}: expected one tensor {TENSOR!r}, got {sorted(tensors)}"
                )
            return tensors[TENSOR]
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # NumPy's header reader raises many kinds, and allocates what the header claims
        raise CheckpointError(f"{path}: not a prompt in .npy or .safetensors format") from error


def _tensors(content: bytes, name: str) -> dict[str, np.ndarray]:
    try:
        return load_safetensors(content)
    except KeyError as error:  # a dtype that NumPy lacks
        raise CheckpointError(
            f"{name}: is stored as {error}; save the prompt as float32"
        ) from error
    except Exception as error:  # of a header that is damaged, many kinds
        raise CheckpointError(f"{name}: not a prompt in .npy or .safetensors format") from error
