"""Draws an experiment's records: which figures, by what varies in its grid."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from prompt_tuning.analysis import style
from prompt_tuning.errors import UserError
from prompt_tuning.experiments.results import figures, scores, tables
from prompt_tuning.experiments.results.scores import Record


def drawn(records: Sequence[Record]) -> dict[str, Any]:
    """The figures of one experiment by name, "" the main one.

    Of a source and target tasks: how far methods are from model tuning on each. Of several sizes:
    curves over sizes, and over each numeric axis. Else, and of ensembles: tasks side by side.

    Raises:
      UserError: if no cell is done.
    """
    done = [record for record in records if record["status"] == "done"]
    if not done:
        raise UserError("no cell is done: nothing to draw")
    axes = scores.varying(done)
    if "source" in done[0]["axes"] and figures.TUNED in axes.get("method", ()):
        return {"": figures.shift(done)}
    if any(result["row"] == tables.ENSEMBLE for record in done for result in record["results"]):
        return {"": figures.tasks(done)}
    found = figures.scaling(done) if "size" in axes else {}
    for axis in figures.lines_of(done):
        if all(value.isdecimal() for value in axes[axis]):
            made = figures.against(done, axis)
            found |= {"_".join(filter(None, (axis, name))): made[name] for name in made}
    return found or {"": figures.tasks(done)}


def write(records: Sequence[Record], folder: epath.PathLike) -> list[epath.Path]:
    """Draws one experiment's records into a folder, as `EXPERIMENT[_NAME].pdf` and `.png`.

    Returns:
      The files.

    Raises:
      UserError: if no cell is done.
    """
    paths = []
    for name, figure in drawn(records).items():
        stem = "_".join(filter(None, (records[0]["experiment"], name)))
        for suffix in (".pdf", ".png"):
            paths.append(epath.Path(folder) / f"{stem}{suffix}")
            style.save(figure, paths[-1])
    return paths
