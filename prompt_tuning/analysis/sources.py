"""Which prompts a command of `analysis` reads: files, or those of an experiment's cells."""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags
from etils import epath

from prompt_tuning.checkpoint import prompts
from prompt_tuning.checkpoint.formats import peft
from prompt_tuning.errors import UserError


def source_files(patterns: Sequence[str], prompt: str | None = None) -> list[str]:
    """The files that `patterns` name, each once, without the file `prompt` itself.

    Args:
      patterns: files, PEFT adapters, folders of `.npy` and `.safetensors` files, and globs.
      prompt: the one that they are compared with, which would be the most similar.

    Raises:
      UserError: if a pattern names nothing.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        paths = list(_expanded(pattern))
        if not paths:
            raise UserError(f"--sources={pattern}: no such file, and no folder with prompts in it")
        found |= {Path(path).resolve(): path for path in paths}
    if prompt is not None:
        found.pop(Path(prompt).expanduser().resolve(), None)
    if not found:
        raise UserError(f"--sources={','.join(patterns)}: only the prompt itself; add others")
    return list(found.values())


def _expanded(pattern: str) -> Iterator[str]:
    for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        if os.path.isdir(path) and not peft.is_adapter(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(prompts.SUFFIXES))
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path


def prompts_of(folder: epath.PathLike, where: Mapping[str, str]) -> dict[str, str]:
    """The best prompts of an experiment's cells, by their names.

    Args:
      folder: of the experiment, where its `table.jsonl` is.
      where: values of axes that the cells must have.

    Raises:
      UserError: if there are none.
    """
    table = epath.Path(folder) / "table.jsonl"
    if not table.exists():
        raise UserError(f"--experiment={folder}: no {table.name}; `experiments table` writes it")
    lines = table.read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["status"] == "done"]
    axes = sorted({axis for record in records for axis in record["axes"]})
    if unknown := [axis for axis in where if axis not in axes]:
        raise UserError(f"--where: there is no axis {unknown[0]!r}; there are {', '.join(axes)}")
    chosen = [record for record in records if where.items() <= record["axes"].items()]
    places = {r["cell"]: (epath.Path(folder) / r["config"]).parent for r in chosen}
    found = {name: str(place / "prompt_best.npy") for name, place in places.items()}
    found = {name: path for name, path in found.items() if epath.Path(path).exists()}
    if not found:
        said = ",".join(f"{axis}:{value}" for axis, value in where.items())
        raise UserError(f"--experiment={folder} --where={said}: no finished cell with a prompt")
    return found


def chosen() -> dict[str, str]:
    """The prompt files that the flags choose, by cell or path.

    Raises:
      UserError: if they choose none.
    """
    given = flags.FLAGS
    if (given.sources is None) == (given.experiment is None):
        raise UserError("give either --sources or --experiment")
    if given.experiment is None:
        if given.where:
            raise UserError(f"--where={','.join(given.where)}: is for --experiment")
        return {path: path for path in source_files(given.sources)}
    pairs = [word.partition(":") for word in given.where]
    if bad := [word for word in given.where if ":" not in word]:
        raise UserError(f"--where={bad[0]}: give AXIS:VALUE")
    return prompts_of(given.experiment, {axis: value for axis, _, value in pairs})


def define_flags() -> None:
    """The flags of `chosen`; not at import, since a flag's name can be taken once in a process."""
    flags.DEFINE_list("sources", None, "Trained prompts: files, folders and globs.")
    flags.DEFINE_string("experiment", None, "Folder of an experiment: its cells' best prompts.")
    flags.DEFINE_list("where", [], "AXIS:VALUE, ...: of which of its cells.")
