"""GLUE and SuperGLUE as one training set each, for tuning on all tasks together.

Raffel et al., 2020 (arXiv 1910.10683), section 3.5.2: in proportion to the size of the tasks up to
a limit, the same with a temperature, and equal.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

from prompt_tuning.data import tasks
from prompt_tuning.data.catalogue import glue_metrics, text_task
from prompt_tuning.data.catalogue.glue import BENCHMARKS, VERSIONS
from prompt_tuning.data.catalogue.text_task import Rate, TextTask
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.errors import UserError

LIMIT = 2**19
TEMPERATURE, TEMPERATURE_LIMIT = 2.0, 2**21


def size_rate(
    task: seqio.Task, limit: int = LIMIT, temperature: float = 1.0, examples_per_row: float = 1.0
) -> float:
    """A mixing rate for SeqIO: the size of the training split up to `limit`, to the power 1/T.

    Unlike SeqIO's `mixing_rate_num_examples` it also knows the size of local files.

    Args:
      task: whose size is asked of its cache, or of its source.
      limit: most examples that count.
      temperature: T.
      examples_per_row: of the source, on average.

    Raises:
      UserError: if the source does not tell its size.
    """
    if task.cache_dir:
        size = task.get_cached_stats("train")["examples"]
    else:
        known = isinstance(task.source, MemorySource)
        rows = task.source.size("train") if known else task.num_input_examples("train")
        if rows is None:
            raise UserError(
                f"{task.name}: its source does not tell its size; mix it by equal rates"
            )
        size = rows * examples_per_row
    return min(size, limit) ** (1 / temperature)


def _proportional(part: TextTask) -> Rate:
    return functools.partial(size_rate, examples_per_row=part.examples_per_row)


def _temperature(part: TextTask) -> Rate:
    return functools.partial(
        size_rate,
        limit=TEMPERATURE_LIMIT,
        temperature=TEMPERATURE,
        examples_per_row=part.examples_per_row,
    )


def _equal(_: TextTask) -> Rate:
    return 1.0


RATES: Mapping[str, Callable[[TextTask], Rate]] = {
    "proportional": _proportional,
    "temperature": _temperature,
    "equal": _equal,
}
# In each, MNLI's two validation sets and WSC's are there to be measured; they have no "train".
PARTS = {
    "super_glue": glue_metrics.SUPER_GLUE,
    "glue": (*glue_metrics.GLUE, "mnli_matched", "mnli_mismatched"),
}


def register_mixtures(there: Collection[str]) -> tuple[str, ...]:
    """Registers each suite at each of `RATES`, of those tasks that are registered.

    Returns:
      The names, such as "taskless_super_glue_v102_examples_proportional".
    """
    names: tuple[str, ...] = ()
    for suite, parts in PARTS.items():
        found = [b for b in BENCHMARKS if b.suite == suite and b.name in parts]
        for way, rate in RATES.items():
            rates = [(part, rate(part) if "train" in part.splits else 0.0) for part in found]
            name = f"taskless_{suite}_{VERSIONS[suite][1]}_examples_{way}"
            names += text_task.add_mixture(name, rates, there)
    return names


def of_tasks(names: Sequence[str]) -> str:
    """Registers a mixture of registered tasks at equal rates; its label words are those of all.

    Returns:
      Its name, the tasks' with "." between them.

    Raises:
      UserError: for a name that is no registered task, or is there twice.
    """
    known = seqio.TaskRegistry.names()
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME = {list(names)}: no task {unknown[0]!r}; available: "
            f"{', '.join(sorted(known))}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"MIXTURE_OR_TASK_NAME = {list(names)}: names a task twice")
    name = ".".join(names)
    tasks.add_mixture(name, dict.fromkeys(names, 1.0))
    return name
