"""python -m prompt_tuning.transfer: which tasks' prompts to start a new task's prompt from.

SPoT (Vu et al., ACL 2022, arXiv 2110.07904): a task's prompt also is its embedding, so
similar prompts tell of tasks that transfer to each other. A prompt starts from one of them through
`PROMPT_INIT=@FromFile()`, or from the weighted average of several.
"""

import glob
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from prompt_tuning import command, report
from prompt_tuning.checkpoint import peft, prompts
from prompt_tuning.errors import UserError

SUFFIXES = (".npy", ".safetensors")
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


def main() -> None:
    given = flags.FLAGS
    if (given.top_k is None) != (given.output is None):
        raise UserError("--top_k and --output belong together; give both or neither")
    target = prompts.load(given.prompt)
    sources = {path: prompts.load(path) for path in source_files(given.sources, given.prompt)}
    similarities = rank(target, sources, MEASURES[given.measure])
    weights = top_k_weights(similarities, given.top_k) if given.top_k else {}
    if given.output:
        prompts.save(given.output, weighted_average(sources, weights))
    if given.json:
        rows = [
            {"prompt": path, "similarity": similarity, "weight": weights.get(path)}
            for path, similarity in similarities.items()
        ]
        report.write_json(given.json, {"measure": given.measure, "sources": rows})
    if given.plot:
        from prompt_tuning.analysis import similarity as drawing  # imports this module
        from prompt_tuning.analysis import style

        style.save(drawing.ranking(similarities, weights, given.measure), given.plot)
    print("similarity  weight  prompt")
    for path, similarity in similarities.items():
        weight = f"{weights[path]:.4f}" if path in weights else ""
        print(f"{similarity:10.4f}  {weight:6}  {path}")


def _expanded(pattern: str) -> Iterator[str]:
    for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        if os.path.isdir(path) and not peft.is_adapter(path):
            names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIXES))
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path


if __name__ == "__main__":
    # Not at import: a flag's name can be taken once in a process, and every command has some.
    flags.DEFINE_string("prompt", None, "The new task's prompt.", required=True)
    flags.DEFINE_list(
        "sources", None, "Prompts of other tasks: files, folders and globs.", required=True
    )
    flags.DEFINE_enum("measure", "average", list(MEASURES), "How to compare two prompts.")
    flags.DEFINE_integer("top_k", None, "Average this many of the most similar prompts.", 1)
    flags.DEFINE_string("output", None, "File to write their weighted average to.")
    flags.DEFINE_string("json", None, "File to write the table to.")
    flags.DEFINE_string("plot", None, "File of a figure to draw: .png, .pdf or .svg.")
    command.run(main)
