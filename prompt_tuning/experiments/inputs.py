"""The files that cells read, by their content: a finished cell is of the files that it has read."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning import embedded
from prompt_tuning.checkpoint import card
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import bindings
from prompt_tuning.experiments.grid import COMMANDS, Cell, Experiment, Step
from prompt_tuning.experiments.wording import counted
from prompt_tuning.runtime.files import is_remote, write_json

NAME = "inputs.json"  # in a cell's folder: digests by path
_PACKAGE = Path(embedded.__file__).parent
_NAMES_A_PATH = re.compile(r"(?i)(dir|path|file|files|folder)$")  # of a macro or a parameter
_CELL = "$cell"  # stands for the cell's folder, whose files are no inputs
_SPLITS = ("train", "validation", "test")
# Larger files and folders are read in part: a checkpoint that was replaced differs everywhere.
_MOST_BYTES = 64 * 2**20
_PIECE = 2**16


def of_cell(cell: Cell, folders: Sequence[str], output: Path) -> dict[str, str]:
    """Returns the digests of what a cell's settings name, by path.

    These are local files and folders that settings and gin files name, and the weights, vocabulary
    and data that come with the package. Of a folder that has one of the task's name, as DATA_DIR
    has, it is that one. The weights that a function of one's own finds come later, by
    `record_backbones`.

    Args:
      cell: The cell.
      folders: Folders that are searched for gin files.
      output: Folder of all experiments, which is left out.
    """
    paths = {path for step in cell.steps for path in _paths(step, tuple(folders))}
    return {_name(path): digest(path, output) for path in sorted(paths)}


def record(folder: Path, digests: Mapping[str, str], *, has_begun: bool) -> None:
    """Records what a cell reads; if it has begun, only paths that are not recorded yet."""
    write_json(folder / NAME, {**digests, **(_recorded(folder) if has_begun else {})})


def record_backbones(folder: Path, steps: Sequence[Step], output: Path) -> None:
    """Records the weights that the cards of a cell's runs name, if settings do not."""
    recorded = _recorded(folder)
    runs = (folder / step.name for step in steps if step.command == "train")
    for saved in (card.read(run / "trained_last.safetensors") for run in runs):
        if saved and saved.backbone and not is_remote(saved.backbone):
            path = Path(saved.backbone).expanduser()
            recorded.setdefault(_name(path), digest(path, output))
    write_json(folder / NAME, recorded)


def changes(experiment: Experiment, cells: Sequence[Cell]) -> str:
    """Says in one line which file has changed since cells read it; "" if there is none.

    A file that is gone is not compared, nor is a cell of an earlier version.
    """
    changed: dict[str, list[Path]] = {}
    for cell in cells:
        folder = experiment.cell_folder(cell)
        for name, before in _recorded(folder).items():
            if digest(_path(name), experiment.root) not in ("", before):
                changed.setdefault(name, []).append(folder)
    if not changed:
        return ""
    name, *others = changed
    also = f" (and {counted(len(others), 'other path')})" if others else ""
    count = len({folder for of_path in changed.values() for folder in of_path})
    them = "its folder" if count == 1 else "the folders of those cells, such as"
    return (
        f"{_path(name)}{also}: has changed since {counted(count, 'cell')} of {experiment.name} "
        f"read it; put it back, choose another OUTPUT, or remove {them} {changed[name][0]}"
    )


@functools.cache
def digest(path: Path, without: Path) -> str:
    """Returns a digest of a file, or of all files of a folder by name; "" if there is nothing.

    Names that begin with a dot, and what is in the folder `without`, are left out. Files are read
    whole up to 64 MiB, those of a folder together; of larger ones equally many bytes are read at
    each of many places, as well as the size. Computed once in a process.
    """
    files = [path] if path.is_file() else sorted(_below(path, without.resolve()))
    if not path.exists():
        return ""
    most = _MOST_BYTES // max(1, len(files))
    content = hashlib.sha256()
    whole = sum(file.stat().st_size for file in files) <= _MOST_BYTES
    for file in files:
        size = file.stat().st_size
        relative = file.relative_to(path).as_posix()
        content.update(f"{relative} {size}\n".encode())
        try:
            with file.open("rb") as stream:
                for start, length in _pieces(size, size if whole else most):
                    stream.seek(start)
                    content.update(stream.read(length))
        except OSError:
            content.update(b"cannot be read")  # as the step will say
    return content.hexdigest()[:16]


def _below(folder: Path, without: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and Path(parent, name).resolve() != without
        ]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _pieces(size: int, most: int) -> Iterator[tuple[int, int]]:
    """Places and lengths that take about `most` bytes, or a piece, of a file; its ends included."""
    count = max(1, most // _PIECE)
    if size <= max(most, _PIECE):
        yield 0, size
        return
    for i in range(count):
        yield (size - _PIECE) * i // max(1, count - 1), _PIECE


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / NAME
    return json.loads(path.read_text()) if path.exists() else {}


def _paths(step: Step, folders: tuple[str, ...]) -> Iterator[Path]:
    bound = bindings.of_step(step.files, step.arguments(_CELL), folders)
    task = str(bound.get("MIXTURE_OR_TASK_NAME", ""))
    of_package = [Path(embedded.data(task, split)) for split in _SPLITS]
    # A folder of which the package's function chooses one file.
    chosen_from = {
        value.get("%")
        for name, value in bound.items()
        if name.startswith("embedded.") and isinstance(value, Mapping)
    }
    yield from filter(Path.is_file, of_package)
    for name, value in bound.items():
        if name in COMMANDS.values() or name in chosen_from or "cache" in name.lower():
            continue
        for text in _texts(value, bound):
            if path := _existing(name, text):
                if path.is_dir() and (path / task).is_dir():
                    yield path / task
                elif name != "DATA_DIR" or not any(map(Path.is_file, of_package)):
                    yield path


def _texts(value: Any, bound: Mapping[str, Any]) -> Iterator[str]:
    """Yields the texts in a value, and the paths that the package's functions return in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, bound)
    elif isinstance(value, Mapping) and "@" not in value:
        for item in value.values():
            yield from _texts(item, bound)
    elif isinstance(value, Mapping):
        module, _, function = value["@"].rpartition("/")[2].rpartition(".")
        if module == "embedded" and value["called"]:
            prefix = f"embedded.{function}."
            given = {k: v for k, v in bound.items() if k.startswith(prefix)}
            arguments = {k.removeprefix(prefix): _of_macro(v, bound) for k, v in given.items()}
            try:
                yield getattr(embedded, function)(**arguments)
            except UserError:
                return  # the step says so


def _of_macro(value: Any, bound: Mapping[str, Any]) -> Any:
    while isinstance(value, Mapping) and "%" in value:
        value = bound.get(value["%"], "")
    return value


def _existing(name: str, text: str) -> Path | None:
    """The local file or folder that a value names; None if it is something else."""
    if not text or _CELL in text or is_remote(text):
        return None
    try:
        path = Path(text).expanduser()
        if path.is_file() or (path.is_dir() and ("/" in text or _NAMES_A_PATH.search(name))):
            return path
    except (OSError, RuntimeError, ValueError):
        pass  # no text that can be a path
    return None


def _name(path: Path) -> str:
    """A path as it is recorded; those of the package are the same on every machine."""
    if path.is_relative_to(_PACKAGE):
        return path.relative_to(_PACKAGE.parent).as_posix()
    return str(path)


def _path(name: str) -> Path:
    of_package = _PACKAGE.parent / name
    return of_package if of_package.is_relative_to(_PACKAGE / "assets") else Path(name)
