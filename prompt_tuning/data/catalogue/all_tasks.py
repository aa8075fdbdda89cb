"""All tasks over TensorFlow Datasets or local files that come with the package."""

from collections.abc import Sequence
from pathlib import Path

from prompt_tuning.data.catalogue import (
    c4,
    glue,
    mixtures,
    paraphrase,
    question_answering,
    summarisation,
    text_task,
)
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.errors import UserError

TASKS = (
    *glue.BENCHMARKS,
    *paraphrase.TASKS,
    *question_answering.TASKS,
    *summarisation.TASKS,
    *c4.TASKS,
)


def register(
    vocabulary: seqio.Vocabulary,
    source: str | Path = text_task.TFDS,
    bad_rows: BadRows | None = None,
) -> tuple[str, ...]:
    """Registers all tasks and mixtures; see `text_task.register`."""
    there = text_task.register(TASKS, vocabulary, source, bad_rows)
    return there + tuple(
        name
        for module in (glue, paraphrase, question_answering, mixtures)
        for name in module.register_mixtures(there)
    )


def full_name(name: str, registered: Sequence[str]) -> str:
    """The task that a name means: itself, or the one benchmark task that has it in it; SuperGLUE's
    where GLUE has it too (both have the same RTE).
    """
    if name in seqio.TaskRegistry.names():
        return name
    found = [task for task in registered if f"_{name}_" in task]
    found = [task for task in found if "_super_glue_" in task] or found
    if len(found) != 1:
        known = ", ".join(found or sorted(seqio.TaskRegistry.names()))
        raise UserError(f"--task={name}: not one task; available: {known}")
    return found[0]
