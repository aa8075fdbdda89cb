"""Warnings of texts that a model cannot read, and of rows that are in two splits."""

import numpy as np

from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.tasks import RowSource

MOST_SHARED = 0.01  # share of a split's inputs that are training inputs, above which a run warns
MOST_UNKNOWN = 0.01  # share of pieces of the inputs that are unknown, above which a run warns


def unknown_notes(where: str, ids: np.ndarray, feature: seqio.Feature) -> list[str]:
    """A line on the share of pieces that the vocabulary does not know, if it is more than a few."""
    share = float(np.mean(ids == feature.vocabulary.unk_id)) if len(ids) else 0.0
    if share <= MOST_UNKNOWN:
        return []
    return [
        f"warning: {where}: {100 * share:.3g} % of the pieces of the inputs are unknown to the "
        "vocabulary, so the model cannot tell them apart; use a backbone of the texts' language"
    ]


def shared_notes(task: seqio.Task) -> list[str]:
    """A line on each split of a task in memory that has many inputs of one that training uses."""
    if not isinstance(task.source, RowSource):
        return []
    inputs = {split: [row.inputs for row in task.source.rows(split)] for split in task.splits}
    notes = []
    for used, why in (("train", "was trained on"), ("validation", "chose the best step")):
        known = set(inputs.pop(used, ()))
        for split, texts in sorted(inputs.items()):
            share = float(np.mean([text in known for text in texts]))
            if share > MOST_SHARED:
                notes.append(
                    f"warning: {task.name}, {split} split: {100 * share:.3g} % of the inputs are "
                    f"in the {used} split too, so what is measured on them {why}"
                )
    return notes
