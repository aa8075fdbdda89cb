"""Balanced classes: training examples divided by their targets, to be drawn equally often."""

from collections.abc import Sequence

import numpy as np

from prompt_tuning.data.batching.tokens import Tokens
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.tasks import labels_of, target_prefix
from prompt_tuning.errors import UserError


def classes(
    tasks: Sequence[seqio.Task], tokens: Sequence[Tokens], rates: Sequence[float]
) -> tuple[list[Tokens], list[float], list[int]]:
    """Divides each task's examples by their targets.

    Args:
      tasks: Tasks that are trained on.
      tokens: Training examples of each; empty if they are not in memory.
      rates: Mixing rate of each.

    Returns:
      The examples of each class of each task, the rates at which to draw them, and the numbers of
      their tasks.

    Raises:
      UserError: If a task has no label words, is not in memory, or its targets are not its label
        words, each at least once.
    """
    for task in tasks:
        if not tokens or not labels_of(task):
            reason = "has no label words" if tokens else "is streamed"
            instead = "use tasks with label words that fit in memory"
            if target_prefix(task) and not tokens:
                reason = "is streamed, since SENTINEL_TARGETS changes its tokens"
                instead = "SENTINEL_TARGETS to False"
            raise UserError(
                f"BALANCED_CLASSES = True: {task.name} {reason}; set it to False, or {instead}"
            )
    parts, part_rates, numbers = [], [], []
    for number, (task, of_task, rate) in enumerate(zip(tasks, tokens, rates, strict=True)):
        by_target = of_task.by_target()
        _check_has_rows(task, by_target)
        parts += by_target
        part_rates += [rate / len(by_target)] * len(by_target)
        numbers += [number] * len(by_target)
    return parts, part_rates, numbers


def _check_has_rows(task: seqio.Task, classes: Sequence[Tokens]) -> None:
    """Raises UserError for a label word that no training example of a task has as its target.

    Likewise for more targets than label words: a postprocessor that takes several for one word
    would let this word be drawn more often than others.
    """
    words = labels_of(task)
    feature = task.output_features["targets"]
    if len(classes) > len(words):
        targets = [feature.vocabulary.decode(list(map(int, tokens[0][1]))) for tokens in classes]
        others = ", ".join(repr(target) for target in targets if target not in words)
        raise UserError(
            f"BALANCED_CLASSES = True: {task.name} has {len(words)} label words, but "
            f"{len(classes)} targets (also {others:.200}); write the label words alone, or set it "
            "to False"
        )
    if len(classes) == len(words):
        return
    end = [feature.vocabulary.eos_id] if feature.add_eos else []
    known = {tuple(np.asarray(tokens[0][1]).tolist()) for tokens in classes}
    missing = [word for word in words if (*feature.vocabulary.encode(word), *end) not in known]
    raise UserError(
        f"BALANCED_CLASSES = True: no training example of {task.name} is "
        f"{' or '.join(map(repr, missing))}; add some, take the word out of the label words, or "
        "set it to False"
    )
