"""All tasks over TensorFlow Datasets or local files that come with the package."""

from pathlib import Path

from prompt_tuning.data import benchmarks, c4, mixtures, reading, summaries, text_task, transfer
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.records import BadRows

TASKS = (
    *benchmarks.BENCHMARKS,
    *transfer.TASKS,
    *reading.TASKS,
    *summaries.TASKS,
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
        for module in (benchmarks, transfer, reading, mixtures)
        for name in module.register_mixtures(there)
    )
