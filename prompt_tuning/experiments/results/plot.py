"""Chooses and draws the figures of an experiment, by what varies in its grid."""

import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from prompt_tuning.analysis import style
from prompt_tuning.errors import UserError
from prompt_tuning.experiments.results import figures, scores
from prompt_tuning.experiments.results.scores import ENSEMBLE, Record


def drawn(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the figures of one experiment by name; "" is the main one.

    With a source and target tasks: how far methods are from model tuning on each. With several
    sizes: curves over sizes, and over each numeric axis. Else, and with ensembles: tasks side by
    side.

    Raises:
      UserError: if no cell is done.
    """
    done = [record for record in records if record["status"] == "done"]
    if not done:
        raise UserError("no cell is done: nothing to draw")
    axes = scores.varying(done)
    if "source" in done[0]["axes"] and figures.TUNED in axes.get("method", ()):
        return {"": figures.shift(done)}
    if any(result["row"] == ENSEMBLE for record in done for result in record["results"]):
        return {"": figures.tasks(done)}
    curves = figures.scaling(done) if "size" in axes else {}
    for axis in figures.lines_of(done, "size"):
        if all(re.fullmatch(r"\d+(\.\d+)?", value) for value in axes[axis]):
            made = figures.against(done, axis)
            curves |= {"_".join(filter(None, (axis, name))): made[name] for name in made}
    return curves or {"": figures.tasks(done)}


def write(records: Sequence[Record], folder: epath.PathLike) -> list[epath.Path]:
    """Draws one experiment's records to `EXPERIMENT[_NAME].pdf` and `.png` in a folder.

    Returns:
      The paths of the files.

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
