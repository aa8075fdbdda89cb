"""Checks of a command's settings, made before anything is written or takes long to read."""

import os
from collections.abc import Sequence

from etils import epath

from prompt_tuning import sharding
from prompt_tuning.data.files import MACROS
from prompt_tuning.errors import UserError, whole_number
from prompt_tuning.evaluation.predict import AUTO, PREDICTORS
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.runtime.files import is_remote
from prompt_tuning.sharding import Layout
from prompt_tuning.training.loop import Fit


def output_folder(setting: str, path: epath.PathLike) -> epath.Path:
    """Returns the folder at `path`, which need not exist.

    Raises:
      UserError: If `path` is not a folder, or is not writable; tested on local disks only.
    """
    if not str(path):
        raise UserError(f"{setting} is empty: name a folder")
    folder = epath.Path(path).expanduser()
    if is_remote(folder):
        return folder
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise UserError(f"{setting} = {str(path)!r}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{setting} = {str(path)!r}: no permission to write in {parent}")
    return folder


def training(fit: Fit, data: Data, layout: Layout, *, eval_batch_size: int, seed: int) -> None:
    """Raises UserError unless these settings of `train` are possible, also together."""
    random_seed(seed)
    sharding.check_batch_size(data.batch_size, layout, parts=fit.num_microbatches)
    sharding.check_batch_size(eval_batch_size, layout, "EVAL_BATCH_SIZE")
    split("train", data.splits)
    split("validation", data.splits)


def random_seed(value: int) -> None:
    """Raises UserError unless NumPy, JAX and TensorFlow all accept the seed."""
    whole_number("RANDOM_SEED", value, 0)


def split(name: str, splits: Sequence[str]) -> None:
    """Raises UserError unless the data has the split `name`, with public targets."""
    if name not in splits:
        hint = f"; for files of your own set {MACROS[name]}" if name in MACROS else ""
        available = f"available: {', '.join(splits)}"
        raise UserError(f"the data has no split {name!r} with targets; {available}{hint}")


_OF_T5X = {"predict": "generate", "score": "rank, over the labels"}  # modes of T5X's infer


def method_names(methods: Sequence[str], setting: str) -> None:
    """Raises UserError unless each of at least one method is an evaluation method."""
    known = (*PREDICTORS, AUTO)
    if not methods:
        raise UserError(f"{setting} is empty; available: {', '.join(known)}")
    if unknown := [name for name in methods if name not in known]:
        hint = f"; T5X's {unknown[0]} is {_OF_T5X[unknown[0]]}" if unknown[0] in _OF_T5X else ""
        raise UserError(
            f"{setting}: unknown method {unknown[0]!r}; available: {', '.join(known)}{hint}"
        )


def eval_methods(methods: Sequence[str], sets: Sequence[EvalSet], setting: str) -> None:
    """Raises UserError unless each task can be evaluated by each method."""
    method_names(methods, setting)
    if "rank" in methods and (unlabelled := [data.task for data in sets if not data.labels]):
        raise UserError(
            f"{setting} has 'rank', but the task {unlabelled[0]} has no labels; set CLASS_LABELS "
            "for files of your own, or choose 'generate' or 'auto'"
        )
