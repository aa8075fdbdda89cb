"""python -m prompt_tuning.analysis.similarity: how alike the prompts of several tasks are.

The measures, and ranking sources for a new task (SPoT, Vu et al. 2022), are `transfer`'s; here they
are drawn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from prompt_tuning.analysis import sources, style
from prompt_tuning.checkpoint import prompts
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.runtime import files

Measure = Callable[[np.ndarray, np.ndarray], float]


def units(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., D] at length 1; zero stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def average_tokens(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the mean vectors of two prompts [P, D] and [P', D]; 0 where one is zero."""
    a, b = a.mean(axis=0, dtype=np.float64), b.mean(axis=0, dtype=np.float64)
    return float(units(a) @ units(b))


def per_token_average(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of all P * P' pairs of vectors of two prompts [P, D] and [P', D]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(units(a).mean(axis=0) @ units(b).mean(axis=0))


MEASURES: Mapping[str, Measure] = {"average": average_tokens, "per_token": per_token_average}


def rank(
    target: np.ndarray, sources: Mapping[str, np.ndarray], measure: Measure = average_tokens
) -> dict[str, float]:
    """The similarity of each source to the target, highest first.

    Args:
      target: the new task's prompt [P, D].
      sources: prompts [P', D] by name.
      measure: `average_tokens` or `per_token_average`.

    Raises:
      UserError: if a source is of another width.
    """
    for name, source in sources.items():
        if source.shape[1] != target.shape[1]:
            raise UserError(
                f"{name}: the prompt is {source.shape[1]} wide, not {target.shape[1]}; "
                "only prompts of one backbone can be compared"
            )
    found = {name: measure(target, source) for name, source in sources.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def top_k_weights(similarities: Mapping[str, float], k: int) -> dict[str, float]:
    """Weights of the first `k` similarities, in proportion to them; their sum is 1.

    Raises:
      UserError: if there are fewer, or one of them is not positive.
    """
    if k > len(similarities):
        raise UserError(f"--top_k={k}: there are {len(similarities)} source prompts; lower it")
    top = dict(list(similarities.items())[:k])
    for place, (name, similarity) in enumerate(top.items()):
        if similarity <= 0:
            raise UserError(
                f"--top_k={k}: the similarity of {name} is {similarity:.4f}, and weights are above "
                f"0; {place} of the source prompts can be averaged"
            )
    total = math.fsum(top.values())
    return {name: similarity / total for name, similarity in top.items()}


def weighted_average(sources: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The sum [P, D] of the prompts that have a weight, times it.

    Raises:
      UserError: if these prompts differ in length.
    """
    length = len(sources[next(iter(weights))])
    for name in weights:
        if len(sources[name]) != length:
            raise UserError(
                f"{name}: the prompt has {len(sources[name])} vectors, the most similar one "
                f"{length}; only prompts of one length can be averaged"
            )
    return np.sum([weight * sources[name] for name, weight in weights.items()], axis=0)


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
        files.write_json(given.json, content | {"similarities": similarities.tolist()})
    if given.plot:
        style.save(heatmap(similarities, labels, given.measure), given.plot)


if __name__ == "__main__":
    # Not at import: a flag's name can be taken once in a process, and every command has some.
    sources.define_flags()
    flags.DEFINE_enum("measure", "average", list(MEASURES), "How to compare two prompts.")
    flags.DEFINE_string("json", None, "File to write the similarities to.")
    flags.DEFINE_string("plot", None, "File of a figure to draw: .png, .pdf or .svg.")
    plain_command.run(main)
