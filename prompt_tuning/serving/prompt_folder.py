"""Prompts of many tasks in one array: every row of a batch gets its own task's.

Lester et al., 2021, figure 2. The array is an argument of what is compiled, so that tasks come and
go without compiling.
"""

import json
from collections.abc import Callable

import numpy as np
from etils import epath

from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.checkpoint.formats import peft
from prompt_tuning.errors import UserError

LABELS_FILE = "labels.json"  # in a folder of prompts


def read(path: epath.PathLike, fingerprint: Callable[[], str] | None = None) -> np.ndarray:
    """A prompt [P, D] from a file or an adapter's folder, refused if its card does not fit.

    Args:
      path: see `checkpoint.prompts.load`.
      fingerprint: of the backbone, computed if there is a card; None to take a prompt of any.

    Raises:
      CheckpointError: as `prompts.load` and `card.check`.
      UserError: if the card says that the prompt is no prefix.
    """
    prompt = prompts.load(path)
    if fingerprint is not None:
        card.check(path, fingerprint)
    found = card.read(path)
    if found is not None and found.placement not in ("", "prefix"):
        raise UserError(
            f"{path}: was trained as {found.placement!r}; a bank's prompts are prefixes"
        )
    return prompt


def files(folder: epath.PathLike) -> dict[str, list[epath.Path]]:
    """The prompt files of each task in a folder.

    `TASK.npy`, `TASK.safetensors` or an adapter's folder `TASK/` is a task's prompt; another folder
    `TASK/` holds several, an ensemble. What begins with a dot is left out.

    Raises:
      UserError: if it is no folder, has no prompts, or two for one name.
    """
    folder = epath.Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of prompts")
    found: dict[str, list[epath.Path]] = {}
    for path in sorted(folder.iterdir()):
        several = [path] if path.suffix in prompts.SUFFIXES or _is_adapter(path) else _inside(path)
        if not several or path.name.startswith("."):
            continue
        task = path.name if path.is_dir() else path.stem
        if task in found:
            raise UserError(f"{folder}: two prompts are named {task!r}; rename or delete one")
        found[task] = several
    if not found:
        raise UserError(f"{folder}: no prompts in it, neither .npy, .safetensors nor a folder")
    return found


def labels(folder: epath.PathLike) -> dict[str, list[str]]:
    """The label words by task that the folder's `labels.json` has; none without that file.

    Raises:
      UserError: if it is no JSON object of lists, or names a task that has no prompt there.
    """
    path = epath.Path(folder).expanduser() / LABELS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(words, list) for words in found.values()):
        raise UserError(f"{path}: must be a JSON object of lists of label words by task")
    if unknown := sorted(found.keys() - files(folder).keys()):
        raise UserError(f"{path}: no prompt for the task {unknown[0]!r}")
    return found


def _inside(path: epath.Path) -> list[epath.Path]:
    if not path.is_dir():
        return []
    return [
        file
        for file in sorted(path.iterdir())
        if file.suffix in prompts.SUFFIXES or _is_adapter(file)
    ]


def _is_adapter(path: epath.Path) -> bool:
    return path.is_dir() and peft.is_adapter(path)
