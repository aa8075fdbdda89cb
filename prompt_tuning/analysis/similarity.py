"""python -m prompt_tuning.analysis.similarity: compares the prompts of several tasks.

Also the measures, ranking and averaging of SPoT (Vu et al. 2022), for `prompt_tuning.transfer`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from prompt_tuning.analysis import sources, style
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.runtime import files

Measure = Callable[[np.ndarray, np.ndarray], float]


def units(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors [..., D] to length 1; zero vectors stay zero."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0)  # squares stay in range
    vectors = vectors / np.where(largest > 0, largest, 1)
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
    """Compares each source with the target; the most similar source comes first.

    Args:
      target: prompt of the new task, [P, D].
      sources: prompts [P', D] by name.
      measure: `average_tokens` or `per_token_average`.

    Raises:
      UserError: if a source has another width.
    """
    for name, source in sources.items():
        if source.shape[1] != target.shape[1]:
            raise UserError(
                f"{name}: the prompt is {source.shape[1]} wide, not {target.shape[1]}; "
                "only prompts of one backbone can be compared"
            )
    similarities = {name: measure(target, source) for name, source in sources.items()}
    return dict(sorted(similarities.items(), key=lambda item: -item[1]))


def top_k_weights(similarities: Mapping[str, float], k: int) -> dict[str, float]:
    """Weights in proportion to the first `k` similarities, with sum 1.

    Raises:
      UserError: if there are fewer than `k`, or one of them is not positive.
    """
    if k > len(similarities):
        raise UserError(f"--top_k={k}: there are {len(similarities)} source prompts; lower it")
    top = dict(list(similarities.items())[:k])
    for place, (name, similarity) in enumerate(top.items()):
        if similarity <= 0:
            raise UserError(
                f"--top_k={k}: the similarity of {name} is {similarity:.4f}, and must be above 0; "
                f"at most {place} source prompts can be averaged"
            )
    total = math.fsum(top.values())
    return {name: similarity / total for name, similarity in top.items()}


def weighted_average(sources: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Sums the prompts [P, D] that have a weight, each times its weight.

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
_LABELLED_PROMPTS = 12  # the most prompts with numbers in the cells of the heatmap


def matrix(prompts_by_name: Mapping[str, np.ndarray], measure: Measure) -> np.ndarray:
    """Similarities [N, N] of N prompts [P, D] to each other.

    Raises:
      UserError: if they differ in width.
    """
    rows = [rank(prompt, prompts_by_name, measure) for prompt in prompts_by_name.values()]
    return np.array([[row[name] for name in prompts_by_name] for row in rows])


def names(paths: Sequence[str]) -> list[str]:
    """Short, distinct names of prompt files: their stems, else their folders, else the paths."""
    for shorten in (lambda path: path.stem, lambda path: path.absolute().parent.name):
        shortened = [shorten(Path(path)) for path in paths]
        if len(set(shortened)) == len(shortened):
            return shortened
    return list(paths)


@style.styled
def heatmap(similarities: np.ndarray, names: Sequence[str], measure: str) -> Any:
    """Draws similarities [N, N] from -1 to 1, white at 0; a small matrix has its values printed."""
    side = max(style.COLUMN, 0.28 * len(names) + 1.2)
    figure, [[axis]] = style.figure(side, side * 0.85)
    image = axis.imshow(similarities, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.grid(visible=False)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(similarities):
        if len(names) <= _LABELLED_PROMPTS:
            color = "white" if abs(value) > 0.6 else "black"
            text = f"{value:.2f}"
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=6)
    figure.colorbar(image, ax=axis, label=_LABELS[measure], shrink=0.85)
    return figure


@style.styled
def ranking(similarities: Mapping[str, float], weights: Mapping[str, float], measure: str) -> Any:
    """Draws each source's similarity to one prompt, in the given order from the top.

    Sources that have a weight in an average are dark.
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


def compare(paths: Mapping[str, str], measure: str) -> np.ndarray:
    """Reads prompts and compares each pair; `paths` are files by name, `measure` a name.

    Raises:
      UserError: if there are fewer than two prompts, or they differ in width, backbone or
        placement.
    """
    if len(paths) < 2:
        [path] = paths.values()
        raise UserError(f"--sources or --experiment: only one prompt ({path}); give two or more")
    first, *others = paths.values()
    for path in others:
        card.check_alike(first, path)
    loaded = {name: prompts.load(path) for name, path in paths.items()}
    return matrix(loaded, MEASURES[measure])


def table(similarities: np.ndarray, names: Sequence[str]) -> str:
    """Formats similarities [N, N] with the names of their rows and columns."""
    width = max(map(len, names))
    widths = [max(7, len(name)) for name in names]
    head = [f"{name:>{size}}" for name, size in zip(names, widths, strict=True)]
    lines = [" ".join([" " * width, *head])]
    for name, row in zip(names, similarities, strict=True):
        values = [f"{value:{size}.4f}" for value, size in zip(row, widths, strict=True)]
        lines.append(" ".join([f"{name:{width}}", *values]))
    return "\n".join(lines)


def main(
    *,
    patterns: Sequence[str] | None,
    experiment: str | None,
    where: Sequence[str],
    measure: str,
    json: str | None,
    plot: str | None,
) -> None:
    paths = sources.selected(patterns, experiment, where)
    if not experiment:
        paths = dict(zip(names(list(paths)), paths.values(), strict=True))
    similarities = compare(paths, measure)
    print(table(similarities, list(paths)))
    if json:
        content = {"measure": measure, "prompts": paths}
        files.write_json(json, content | {"similarities": similarities.tolist()})
    if plot:
        style.save(heatmap(similarities, list(paths), measure), plot)


def define_flags() -> plain_command.Flags:
    return sources.define_flags() | {
        "measure": flags.DEFINE_enum(
            "measure", "average", list(MEASURES), "How to compare two prompts."
        ),
        "json": flags.DEFINE_string("json", None, "File to write the similarities to."),
        "plot": flags.DEFINE_string("plot", None, "File of a figure to draw: .png, .pdf or .svg."),
    }


if __name__ == "__main__":
    plain_command.main(main, define_flags)
