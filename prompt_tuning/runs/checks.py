"""Checks of a command's settings: made before anything is read for long, or written."""

import os
from collections.abc import Mapping, Sequence

from etils import epath

from prompt_tuning.data.files import MACROS
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import AUTO, PREDICTORS
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.runtime.files import is_remote


def output_folder(setting: str, path: epath.PathLike) -> epath.Path:
    """The folder at `path`, which need not exist.

    Raises:
      UserError: if it is no folder, or nothing can be written there; tested on local disks only.
    """
    if not str(path):
        raise UserError(f"{setting} is empty: name a folder")
    folder = epath.Path(path).expanduser()
    if is_remote(folder):
        return folder
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise UserError(f"{setting} = {str(path)!r}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{setting} = {str(path)!r}: no permission to write in {there}")
    return folder


def positive(settings: Mapping[str, int]) -> None:
    """Raises UserError, naming the setting, for a number below 1."""
    for name, value in settings.items():
        if value < 1:
            raise UserError(f"{name} = {value}: must be at least 1")


def seed(value: int) -> None:
    """Raises UserError unless NumPy, JAX and TensorFlow all take the seed."""
    if not 0 <= value < 2**31:
        raise UserError(f"RANDOM_SEED = {value}: must be from 0 to {2**31 - 1}")


def split(wanted: str, there_are: Sequence[str]) -> None:
    """Raises UserError unless the data has the split `wanted`."""
    if wanted not in there_are:
        hint = f"; for files of your own set {MACROS[wanted]}" if wanted in MACROS else ""
        raise UserError(f"the data has no split {wanted!r}, only {', '.join(there_are)}{hint}")


def eval_methods(methods: Sequence[str], sets: Sequence[EvalSet], setting: str) -> None:
    """Raises UserError unless each task can be evaluated by each method."""
    known = (*PREDICTORS, AUTO)
    if not methods:
        raise UserError(f"{setting} is empty; choose from {', '.join(known)}")
    if unknown := [name for name in methods if name not in known]:
        raise UserError(f"{setting}: no {unknown[0]!r}; choose from {', '.join(known)}")
    if "rank" in methods and (without := [data.task for data in sets if not data.labels]):
        raise UserError(
            f"{setting} has 'rank', but the task {without[0]} has no labels: set CLASS_LABELS for "
            "files of your own, or choose 'generate' or 'auto'"
        )
