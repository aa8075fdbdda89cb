"""python -m prompt_tuning.analysis.similarity: how alike the prompts of several tasks are.

The measures, and ranking sources for a new task (SPoT, Vu et al. 2022), are `transfer`'s; here they
are drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from prompt_tuning import command, report
from prompt_tuning.analysis import sources, style
from prompt_tuning.checkpoint import prompts
from prompt_tuning.errors import UserError
from prompt_tuning.transfer import MEASURES, Measure, rank

_LABELS = {
    "average": "cosine of the mean vectors",
    "per_token": "mean cosine of pairs of vectors",
}
_NUMBERS = 12  # prompts up to which the cells hold their values


def matrix(of: Mapping[str, np.ndarray], measure: Measure) -> np.ndarray:
    """Similarities [N, N] of N prompts [P, D] with each other.

    Raises:
      UserError: if they differ in width.
    """
    rows = [rank(prompt, of, measure) for prompt in of.values()]
    return np.array([[row[name] for name in of] for row in rows])


def names(paths: Sequence[str]) -> list[str]:
    """Short names of prompt files: their stems, or folders where stems are alike; else paths."""
    for short in (lambda path: path.stem, lambda path: path.absolute().parent.name):
        found = [short(Path(path)) for path in paths]
        if len(set(found)) == len(found):
            return found
    return list(paths)


@style.styled
def heatmap(similarities: np.ndarray, names: Sequence[str], measure: str) -> Any:
    """A Figure of similarities [N, N] from -1 to 1, white at 0; few of them with their values."""
    side = max(style.COLUMN, 0.28 * len(names) + 1.2)
    figure, [[axis]] = style.figure(side, side * 0.85)
    image = axis.imshow(similarities, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.grid(visible=False)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(similarities):
        if len(names) <= _NUMBERS:
            color = "white" if abs(value) > 0.6 else "black"
            text = f"{value:.2f}"
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=6)
    figure.colorbar(image, ax=axis, label=_LABELS[measure], shrink=0.85)
    return figure


@style.styled
def ranking(similarities: Mapping[str, float], weights: Mapping[str, float], measure: str) -> Any:
    """A Figure of each source's similarity to one prompt, the highest on top; those with a weight
    in an average are dark.
    """
    figure, [[axis]] = style.figure(height=0.7 + 0.18 * len(similarities))
    colors = [style.COLORS[0 if name in weights else 5] for name in similarities]
    labels = names(list(similarities))
    axis.barh(labels, list(similarities.values()), color=colors, height=0.7)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(_LABELS[measure])
    if weights:
        axis.set_title(f"averaged: the first {len(weights)} (dark)", loc="left")
    return figure


def main() -> None:
    given = flags.FLAGS
    chosen = sources.chosen()
    paths = list(chosen.values())
    if len(paths) < 2:
        raise UserError(f"--sources or --experiment: one prompt ({paths[0]}); give two or more")
    labels = list(chosen) if given.experiment else names(paths)
    found = {name: prompts.load(path) for name, path in zip(labels, paths, strict=True)}
    similarities = matrix(found, MEASURES[given.measure])
    width = max(map(len, labels))
    print(" " * width, *(f"{name:>{max(7, len(name))}}" for name in labels))
    for name, row in zip(labels, similarities, strict=True):
        values = zip(labels, row, strict=True)
        print(f"{name:{width}}", *(f"{value:{max(7, len(other))}.4f}" for other, value in values))
    if given.json:
        content = {"measure": given.measure, "prompts": dict(zip(labels, paths, strict=True))}
        report.write_json(given.json, content | {"similarities": similarities.tolist()})
    if given.plot:
        style.save(heatmap(similarities, labels, given.measure), given.plot)


if __name__ == "__main__":
    # Not at import: a flag's name can be taken once in a process, and every command has some.
    sources.define_flags()
    flags.DEFINE_enum("measure", "average", list(MEASURES), "How to compare two prompts.")
    flags.DEFINE_string("json", None, "File to write the similarities to.")
    flags.DEFINE_string("plot", None, "File of a figure to draw: .png, .pdf or .svg.")
    command.run(main)
