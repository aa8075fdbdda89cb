"""The package's tasks over TensorFlow Datasets or local files."""

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
    """Registers all tasks and mixtures, and returns their names; see `text_task.register`."""
    registered = text_task.register(TASKS, vocabulary, source, bad_rows)
    return registered + tuple(
        name
        for module in (glue, paraphrase, question_answering, mixtures)
        for name in module.register_mixtures(registered)
    )


def full_name(name: str, registered: Sequence[str]) -> str:
    """The task of a full or short name.

    A short name such as "rte" stands for the only benchmark task that contains it, SuperGLUE's if
    GLUE has one too.

    Raises:
      UserError: If it stands for no task, or for several.
    """
    if name in seqio.TaskRegistry.names():
        return name
    matches = [task for task in registered if f"_{name}_" in task]
    matches = [task for task in matches if "_super_glue_" in task] or matches
    if len(matches) != 1:
        available = ", ".join(matches or sorted(seqio.TaskRegistry.names()))
        raise UserError(f"--task={name}: must name one task; available: {available}")
    return matches[0]
