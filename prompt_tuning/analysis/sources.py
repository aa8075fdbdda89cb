"""Finds the prompts that a command reads: files, or those of an experiment's cells."""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags
from etils import epath

from prompt_tuning.checkpoint import prompts
from prompt_tuning.checkpoint.formats import peft
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError


def source_files(patterns: Sequence[str], prompt: str | None = None) -> list[str]:
    """Expands patterns to prompt files, each once, without the file `prompt` itself.

    Args:
      patterns: files, PEFT adapters, folders of `.npy` and `.safetensors` files, and globs.
      prompt: prompt that they are compared with, and which would be the most similar.

    Raises:
      UserError: if a pattern matches nothing.
    """
    matches: dict[Path, str] = {}
    for pattern in patterns:
        paths = list(_expanded(pattern))
        if not paths:
            raise UserError(f"--sources={pattern}: no such file, and no folder with prompts in it")
        matches |= {Path(path).resolve(): path for path in paths}
    if prompt is not None:
        matches.pop(Path(prompt).expanduser().resolve(), None)
    if not matches:
        raise UserError(f"--sources={','.join(patterns)}: only the prompt itself; add others")
    return list(matches.values())


def _expanded(pattern: str) -> Iterator[str]:
    for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        if os.path.isdir(path) and not peft.is_adapter(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(prompts.SUFFIXES))
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path


def prompts_of(folder: epath.PathLike, where: Mapping[str, str]) -> dict[str, str]:
    """Finds the best prompts of an experiment's cells, by the names of the cells.

    Args:
      folder: folder of the experiment, which contains `table.jsonl`.
      where: values of axes that a cell must have.

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
        raise UserError(f"--where: unknown axis {unknown[0]!r}; available: {', '.join(axes)}")
    cells = [record for record in records if where.items() <= record["axes"].items()]
    files = {
        cell["cell"]: (epath.Path(folder) / cell["config"]).parent / "prompt_best.npy"
        for cell in cells
    }
    files = {name: file for name, file in files.items() if file.exists()}
    if not files:
        conditions = ",".join(f"{axis}:{value}" for axis, value in where.items())
        raise UserError(
            f"--experiment={folder} --where={conditions}: no finished cell with a prompt"
        )
    return {name: str(file) for name, file in files.items()}


def define_flags() -> plain_command.Flags:
    """Defines flags for the arguments of `selected`."""
    return {
        "patterns": flags.DEFINE_list(
            "sources", None, "Trained prompts: files, folders and globs."
        ),
        "experiment": flags.DEFINE_string(
            "experiment", None, "Experiment folder, to read its cells' best prompts."
        ),
        "where": flags.DEFINE_list("where", [], "AXIS:VALUE, ...: selects its cells."),
    }


def selected(
    patterns: Sequence[str] | None, experiment: str | None, where: Sequence[str]
) -> dict[str, str]:
    """The prompt files that the flags select, by cell or path.

    Raises:
      UserError: if they select none.
    """
    if experiment is not None and patterns is None:
        if malformed := [word for word in where if ":" not in word]:
            raise UserError(f"--where={malformed[0]}: must be AXIS:VALUE")
        chosen = [word.partition(":")[::2] for word in where]
        if len(dict(chosen)) < len(chosen):
            raise UserError(f"--where={','.join(where)}: names an axis twice; give one value")
        return prompts_of(experiment, dict(chosen))
    if patterns is None or experiment is not None:
        raise UserError("give either --sources or --experiment")
    if where:
        raise UserError(f"--where={','.join(where)}: requires --experiment")
    return {path: path for path in source_files(patterns)}
