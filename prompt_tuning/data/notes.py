"""Warnings of rows that are in two splits."""

import numpy as np

from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.tasks import RowSource

MOST_SHARED = 0.01  # share of a split's inputs that are training inputs, above which a run warns


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
