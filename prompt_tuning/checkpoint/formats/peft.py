"""Reads and writes Hugging Face PEFT adapters and their prompts for T5, without torch or PEFT.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`. PEFT 0.21 stores
twice as many rows of a prompt as it uses: its T5 reads the first P, and the others get no gradient.
LoRA and IA3 are in `exchange.peft_layers`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save as serialize

from prompt_tuning import families
from prompt_tuning.checkpoint.formats import safetensors_file
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import folder_when_done

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
TASK_TYPE = "SEQ_2_SEQ_LM"

MULTITASK = "MULTITASK_PROMPT_TUNING"
PROMPTS = ("PROMPT_TUNING", "P_TUNING", MULTITASK)
LORA, IA3 = "LORA", "IA3"
TYPES = (*PROMPTS, LORA, IA3)
_ROWS, _COLUMNS_OF, _ROWS_OF = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as it is stored.

    Attributes:
      path: folder of the adapter.
      config: content of `adapter_config.json`.
      tensors: float32 tensors by PEFT's names.
    """

    path: epath.Path
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def refused(self, field: str, advice: str) -> CheckpointError:
        """An error that names the file, a field of the config and its value."""
        value = json.dumps(self.config.get(field))
        return CheckpointError(f"{self.path / CONFIG}: {field} = {value[:200]}: {advice}")

    def count(self, field: str) -> int:
        """The value of a field that must be a whole number from 1."""
        value = self.config.get(field)
        if type(value) is not int or value < 1:
            raise self.refused(field, "must be a positive whole number")
        return value

    def tensor(self, name: str, shape: Sequence[int | None], reason: str) -> np.ndarray:
        """Returns a tensor after checking its shape.

        Args:
          name: PEFT's name of the tensor.
          shape: required shape, with None for an axis of any size.
          reason: fields of the config that the shape follows from.
        """
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path / WEIGHTS}: contains no {name}; copy the adapter again"
            )
        tensor = self.tensors[name]
        fits = [side in (None, size) for side, size in zip(shape, tensor.shape, strict=False)]
        if tensor.ndim != len(shape) or not all(fits):
            expected = ", ".join("any" if side is None else str(side) for side in shape)
            raise CheckpointError(
                f"{self.path / WEIGHTS}: {name}: expected [{expected}] by {reason} in {CONFIG}, "
                f"got {list(tensor.shape)}; copy the adapter again"
            )
        return tensor


def is_adapter(path: epath.PathLike) -> bool:
    """Whether a folder contains a file of an adapter, complete or not."""
    return any((epath.Path(path) / name).exists() for name in (CONFIG, WEIGHTS, PICKLE))


def read(path: epath.PathLike, types: Sequence[str] = TYPES) -> Adapter:
    """Reads an adapter of a T5; never unpickles.

    Args:
      path: local folder of the adapter.
      types: accepted values of `peft_type`.

    Raises:
      CheckpointError: if a file is missing, damaged or pickled, a value is not finite, or the
        adapter has another type or is not for an encoder-decoder.
    """
    path = epath.Path(path).expanduser()
    config = read_config(path)
    adapter = Adapter(path, config, {})
    if config.get("peft_type") not in types:
        raise adapter.refused("peft_type", f"expected one of {', '.join(types)}")
    if config.get("task_type") != TASK_TYPE:
        raise adapter.refused("task_type", f"must be {TASK_TYPE}, for an adapter of T5")
    arrays = {name: np.asarray(x, np.float32) for name, x in stored(path).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path / WEIGHTS}: {name} has values that are not finite")
    return dataclasses.replace(adapter, tensors=arrays)


def read_config(path: epath.Path) -> dict[str, Any]:
    """Reads the config of the adapter in the folder `path`.

    Raises:
      CheckpointError: if it is missing or not a JSON object.
    """
    file = path / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; copy it too, every PEFT adapter has one")
    return families.read_json(file, "adapter")


def stored(path: epath.Path) -> dict[str, safetensors_file.Stored]:
    """Opens the tensors of the adapter in the folder `path`, without reading them.

    Raises:
      CheckpointError: if they are missing, damaged or pickled.
    """
    if not (path / WEIGHTS).exists() and (path / PICKLE).exists():
        raise CheckpointError(
            f"{path / PICKLE}: a pickle, which can run any code when it is read; if you trust "
            "it, load it with PEFT and call save_pretrained, which writes safetensors"
        )
    return safetensors_file.stored(path / WEIGHTS)


def load_prompt(path: epath.PathLike, task: int | None = None) -> np.ndarray:
    """Reads the prompt [P, D] that PEFT's T5 prepends to the encoder's input, float32.

    Prompt tuning and P-tuning store it as such; for multitask prompt tuning it is the shared rows
    times the product of the task's factors.

    Args:
      path: folder of the adapter.
      task: task of a multitask prompt, from 0; None if there is only one.

    Raises:
      CheckpointError: as `read`, or if the tensors do not fit the config or the task.
    """
    adapter = read(path, PROMPTS)
    length = adapter.count("num_virtual_tokens")
    # For PEFT null means 2 submodules, and the width of the backbone.
    value_of = adapter.config.get
    submodules = "num_transformer_submodules"
    total = length * (2 if value_of(submodules) is None else adapter.count(submodules))
    width = None if value_of("token_dim") is None else adapter.count("token_dim")
    reason = f"num_virtual_tokens x {submodules} and token_dim"
    rows = adapter.tensor(_ROWS, (total, width), reason)
    if adapter.config["peft_type"] == MULTITASK:
        return (rows * _factor(adapter, rows.shape, task))[:length]
    if task is not None:
        raise adapter.refused("peft_type", f"has only one prompt; leave out the task {task}")
    return np.ascontiguousarray(rows[:length])


def save_prompt(path: epath.PathLike, prompt: np.ndarray) -> None:
    """Writes a prompt [P, D] as an adapter folder that PEFT loads, with exactly P rows.

    Raises:
      CheckpointError: if the folder exists.
    """
    config = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": prompt.shape[0],
        "num_transformer_submodules": 1,
        "token_dim": prompt.shape[1],
    }
    write(path, config, {_ROWS: prompt})


def write(
    path: epath.PathLike, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes an adapter of T5 in float32; the folder gets its name once it is complete.

    Raises:
      CheckpointError: if the folder exists.
    """
    common = {"task_type": TASK_TYPE, "inference_mode": True, "base_model_name_or_path": None}
    content = {
        name: np.ascontiguousarray(safetensors_file.in_dtype(name, x, np.float32))
        for name, x in arrays.items()
    }
    with folder_when_done(path) as temporary:
        (temporary / WEIGHTS).write_bytes(serialize(content, {"format": "pt"}))
        fields = json.dumps(common | dict(config), indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(fields + "\n")


def _factor(adapter: Adapter, shape: Sequence[int], task: int | None) -> np.ndarray:
    """The factor [rows, D] of the shared rows in multitask prompt tuning."""
    tasks, rank = adapter.count("num_tasks"), adapter.count("num_ranks")
    if task is None and tasks > 1:
        raise adapter.refused(
            "num_tasks",
            "has one prompt per task; convert one to a file (prompt_tuning.adapters --task)",
        )
    if not 0 <= (task or 0) < tasks:
        raise adapter.refused("num_tasks", f"there is no task {task}; the first task is 0")
    reason = "num_tasks, num_ranks and the prompt"
    columns = adapter.tensor(_COLUMNS_OF, (tasks, shape[0], rank), reason)
    rows = adapter.tensor(_ROWS_OF, (tasks, rank, shape[1]), reason)
    return columns[task or 0] @ rows[task or 0]
