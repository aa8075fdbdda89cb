"""Hugging Face PEFT's adapters, without torch or PEFT: their files, and their prompts for T5.

An adapter is a folder of `adapter_config.json` and `adapter_model.safetensors`. PEFT 0.21 stores
twice the rows of a prompt that it uses: its T5 reads the first P, and the rest gets no gradient.
`peft_layers` has LoRA and IA3.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save as serialize

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
      path: its folder.
      config: of its `adapter_config.json`.
      tensors: float32, by PEFT's names.
    """

    path: epath.Path
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def refused(self, field: str, advice: str) -> CheckpointError:
        """The error of a field of the config; it names the file, the field and its value."""
        value = json.dumps(self.config.get(field))
        return CheckpointError(f"{self.path / CONFIG}: {field} = {value[:200]}: {advice}")

    def count(self, field: str) -> int:
        """A field that is a whole number from 1."""
        value = self.config.get(field)
        if type(value) is not int or value < 1:
            raise self.refused(field, "must be a positive whole number")
        return value

    def tensor(self, name: str, shape: Sequence[int | None], reason: str) -> np.ndarray:
        """A tensor of a shape, None for a side of any size; `reason` says what asks for it."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path / WEIGHTS}: holds no {name}; copy the adapter again")
        found = self.tensors[name]
        fits = [side in (None, size) for side, size in zip(shape, found.shape, strict=False)]
        if found.ndim != len(shape) or not all(fits):
            wanted = ", ".join("any" if side is None else str(side) for side in shape)
            raise CheckpointError(
                f"{self.path / WEIGHTS}: {name} is {list(found.shape)}, not [{wanted}], which "
                f"{reason} in {CONFIG} asks for; copy the adapter again"
            )
        return found


def is_adapter(path: epath.PathLike) -> bool:
    """Whether a folder holds a file of an adapter, be it whole or not."""
    return any((epath.Path(path) / name).exists() for name in (CONFIG, WEIGHTS, PICKLE))


def read(path: epath.PathLike, types: Sequence[str] = TYPES) -> Adapter:
    """Reads an adapter of a T5; never unpickles.

    Args:
      path: its folder, local.
      types: the `peft_type`s to take.

    Raises:
      CheckpointError: if a file is missing, damaged or pickled, if a value is not finite, or if
        the adapter is of another type or of no encoder-decoder.
    """
    path = epath.Path(path).expanduser()
    config = read_config(path)
    adapter = Adapter(path, config, {})
    if config.get("peft_type") not in types:
        raise adapter.refused("peft_type", f"what is read here is {', '.join(types)}")
    if config.get("task_type") != TASK_TYPE:
        raise adapter.refused("task_type", f"only {TASK_TYPE}, an adapter of a T5, is read")
    arrays = {name: np.asarray(x, np.float32) for name, x in stored(path).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path / WEIGHTS}: {name} holds values that are not finite")
    return dataclasses.replace(adapter, tensors=arrays)


def read_config(path: epath.Path) -> dict[str, Any]:
    """The config of the adapter in the folder `path`.

    Raises:
      CheckpointError: if it is missing or no JSON object.
    """
    file = path / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; a PEFT adapter has one, copy it too")
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON ({error}); copy the adapter again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object; copy the adapter again")
    return config


def stored(path: epath.Path) -> dict[str, safetensors_file.Stored]:
    """The tensors of the adapter in the folder `path`; none is read.

    Raises:
      CheckpointError: if they are missing, damaged or pickled.
    """
    if not (path / WEIGHTS).exists() and (path / PICKLE).exists():
        raise CheckpointError(
            f"{path / PICKLE}: a pickle, which can run any code when it is read; where you trust "
            "it, load it with PEFT and call save_pretrained, which writes safetensors"
        )
    return safetensors_file.stored(path / WEIGHTS)


def load_prompt(path: epath.PathLike, task: int | None = None) -> np.ndarray:
    """The prompt [P, D] that PEFT's T5 puts before the encoder's input, float32.

    Of prompt tuning and P-tuning it is stored as such; of multitask prompt tuning it is the shared
    rows times the product of the task's factors.

    Args:
      path: an adapter's folder.
      task: a multitask prompt's task, from 0; None if there is one only.

    Raises:
      CheckpointError: as `read`, or if the tensors do not fit the config or the task.
    """
    adapter = read(path, PROMPTS)
    length = adapter.count("num_virtual_tokens")
    # PEFT takes null for 2 here, and the backbone's width for a null one.
    given = adapter.config.get
    submodules = "num_transformer_submodules"
    total = length * (2 if given(submodules) is None else adapter.count(submodules))
    width = None if given("token_dim") is None else adapter.count("token_dim")
    reason = f"num_virtual_tokens x {submodules} and token_dim"
    rows = adapter.tensor(_ROWS, (total, width), reason)
    if adapter.config["peft_type"] == MULTITASK:
        return (rows * _factor(adapter, rows.shape, task))[:length]
    if task is not None:
        raise adapter.refused("peft_type", f"holds one prompt only; leave out the task {task}")
    return np.ascontiguousarray(rows[:length])


def save_prompt(path: epath.PathLike, prompt: np.ndarray) -> None:
    """Writes a prompt [P, D] as the folder of an adapter that PEFT loads, with the P rows only.

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
    """Writes an adapter of a T5 as float32; the folder gets its name when it is complete.

    Raises:
      CheckpointError: if the folder exists.
    """
    common = {"task_type": TASK_TYPE, "inference_mode": True, "base_model_name_or_path": None}
    content = {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}
    with folder_when_done(path) as temporary:
        (temporary / WEIGHTS).write_bytes(serialize(content, {"format": "pt"}))
        described = json.dumps(common | dict(config), indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(described + "\n")


def _factor(adapter: Adapter, shape: Sequence[int], task: int | None) -> np.ndarray:
    """What multitask prompt tuning multiplies its shared rows with, [rows, D]."""
    tasks, rank = adapter.count("num_tasks"), adapter.count("num_ranks")
    if task is None and tasks > 1:
        raise adapter.refused(
            "num_tasks",
            "a prompt for each task; convert one to a prompt file (prompt_tuning.adapters --task)",
        )
    if not 0 <= (task or 0) < tasks:
        raise adapter.refused("num_tasks", f"there is no task {task}; they count from 0")
    reason = "num_tasks, num_ranks and the prompt"
    columns = adapter.tensor(_COLUMNS_OF, (tasks, shape[0], rank), reason)
    rows = adapter.tensor(_ROWS_OF, (tasks, rank, shape[1]), reason)
    return columns[task or 0] @ rows[task or 0]
