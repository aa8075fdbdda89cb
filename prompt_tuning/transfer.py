"""python -m prompt_tuning.transfer: ranks trained prompts as initialisations for a new task.

SPoT (Vu et al., ACL 2022, arXiv 2110.07904): a task's prompt is also its embedding, so similar
prompts indicate tasks that transfer to each other. A prompt starts from one of them through
`PROMPT_INIT=@FromFile()`, or from the weighted average of several.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from prompt_tuning.analysis import style
from prompt_tuning.analysis.similarity import (
    MEASURES,
    rank,
    ranking,
    top_k_weights,
    weighted_average,
)
from prompt_tuning.analysis.sources import source_files
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.checkpoint.card import Card
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.runtime import files


def define_flags() -> plain_command.Flags:
    return {
        "prompt": flags.DEFINE_string("prompt", None, "Prompt of the new task.", required=True),
        "patterns": flags.DEFINE_list(
            "sources", None, "Prompts of other tasks: files, folders and globs.", required=True
        ),
        "measure": flags.DEFINE_enum(
            "measure", "average", list(MEASURES), "How to compare two prompts."
        ),
        "top_k": flags.DEFINE_integer(
            "top_k", None, "How many of the most similar prompts to average.", 1
        ),
        "output": flags.DEFINE_string("output", None, "File to write their weighted average to."),
        "json": flags.DEFINE_string("json", None, "File to write the table to."),
        "plot": flags.DEFINE_string("plot", None, "File of a figure to draw: .png, .pdf or .svg."),
    }


def main(
    *,
    prompt: str,
    patterns: Sequence[str],
    measure: str,
    top_k: int | None,
    output: str | None,
    json: str | None,
    plot: str | None,
) -> None:
    if (top_k is None) != (output is None):
        raise UserError("--top_k and --output belong together; give both or neither")
    target, paths = prompts.load(prompt), source_files(patterns, prompt)
    if output and os.path.realpath(output) in map(os.path.realpath, paths):
        raise UserError(f"--output={output}: is one of the sources; name another file")
    sources = _distinct({path: prompts.load(path) for path in paths})
    for path in [path for path, source in sources.items() if prompts.are_same(source, target)]:
        print(f"{path}: is the prompt itself, and is left out")
        del sources[path]
    if not sources:
        raise UserError(f"--sources={','.join(patterns)}: only the prompt itself; add others")
    for path in sources:
        card.check_alike(prompt, path)
    similarities = rank(target, sources, MEASURES[measure])
    weights = top_k_weights(similarities, top_k) if top_k else {}
    if output:
        of_average = _card_of_average(list(weights))
        average = weighted_average(sources, weights)
        prompts.save(output, average)
        card.save(output, of_average, average)
    if json:
        rows = [
            {"prompt": path, "similarity": similarity, "weight": weights.get(path)}
            for path, similarity in similarities.items()
        ]
        files.write_json(json, {"measure": measure, "sources": rows})
    if plot:
        style.save(ranking(similarities, weights, measure), plot)
    print("similarity  weight  prompt")
    for path, similarity in similarities.items():
        weight = f"{weights[path]:.4f}" if path in weights else ""
        print(f"{similarity:10.4f}  {weight:6}  {path}")


def _distinct(sources: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keeps one file of each prompt, since a run writes two, which an average would count twice."""
    kept: dict[str, np.ndarray] = {}
    for path, source in sources.items():
        same = next(
            (other for other, known in kept.items() if prompts.are_same(source, known)), None
        )
        if same is None:
            kept[path] = source
        else:
            print(f"{path}: is the prompt of {same}, and counts once")
    return kept


def _card_of_average(sources: Sequence[str]) -> Card | None:
    """The card of an average: backbone and placement of its sources, and their longest lengths.

    Its label words, tasks and text fields are those of all; a warning says where words differ.

    Raises:
      UserError: If sources were trained with different text before their targets, or with some
        text and one of them does not say.
    """
    read = {path: saved for path in sources if (saved := card.read(path)) is not None}
    if not read:
        return None
    with_ = {path: saved.trained_with for path, saved in read.items() if saved.trained_with}
    prefixes = {path: each.target_prefix for path, each in with_.items()}
    if prefixed := next(filter(prefixes.get, prefixes), ""):
        for path in sources:
            if prefixes.get(path) != prefixes[prefixed]:
                said = "no card says with which target prefix it was trained"
                if path in prefixes:
                    said = f"was trained with the target prefix {prefixes[path]!r}"
                raise UserError(
                    f"{path}: {said}, {prefixed} with {prefixes[prefixed]!r}; an average of both "
                    "answers like neither"
                )
    average = dataclasses.replace(
        next(iter(read.values())),
        task=", ".join(saved.task for saved in read.values()),
        steps=0,
        metric={},
        config="",
        initialisation="weighted average",
        trained_with=next(iter(with_.values()), None),
    )
    if average.trained_with is None:
        return average
    lengths: dict[str, int] = {}
    for name, length in (pair for each in with_.values() for pair in each.lengths.items()):
        lengths[name] = max(length, lengths.get(name, 0))
    words = {path: sorted(each.labels) for path, each in with_.items() if each.labels}
    known, labels = next(iter(words.items()), ("", []))
    if others := [path for path, own in words.items() if own != labels]:
        warnings.warn(
            f"{others[0]}: was trained on the label words {', '.join(words[others[0]])}, {known} "
            f"on {', '.join(labels)}; train their average before it answers",
            stacklevel=2,
        )

    def of_all(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part for each in with_.values() for part in getattr(each, name)))

    trained_with = dataclasses.replace(
        average.trained_with,
        lengths=lengths,
        labels=of_all("labels"),
        tasks=of_all("tasks"),
        text_fields={task: names for x in with_.values() for task, names in x.text_fields.items()},
    )
    return dataclasses.replace(average, trained_with=trained_with)


if __name__ == "__main__":
    plain_command.main(main, define_flags)
