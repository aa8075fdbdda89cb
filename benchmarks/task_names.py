"""Tasks by short names."""

from prompt_tuning.data import tasks
from prompt_tuning.data.catalogue import glue


def register(data_dir: str | None, vocabulary: str) -> tuple[str, ...]:
    """Registers the demo tasks, and those of a folder of local data sets; returns their names."""
    found = tasks.vocabulary(vocabulary)
    tasks.register_demo_tasks(found)
    return glue.register_benchmarks(found, data_dir) if data_dir else ()
