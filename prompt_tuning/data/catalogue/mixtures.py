"""GLUE and SuperGLUE as one mixture each, for tuning on all tasks together.

The mixing rates are those of Raffel et al., 2020 (arXiv 1910.10683), section 3.5.2: proportional to
the size of the tasks up to a limit, the same with a temperature, and equal.
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

    Unlike SeqIO's `mixing_rate_num_examples`, it knows the size of local files as well.

    Args:
      task: A task, whose cache or source gives the size.
      limit: Most examples that count.
      temperature: Temperature T.
      examples_per_row: Mean number of examples per row of the source.

    Raises:
      UserError: If the source does not know its size.
    """
    if task.cache_dir:
        size = task.get_cached_stats("train")["examples"]
    else:
        in_memory = isinstance(task.source, MemorySource)
        rows = task.source.size("train") if in_memory else task.num_input_examples("train")
        if rows is None:
            raise UserError(f"{task.name}: its source has no known size; mix it at equal rates")
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
# The validation sets of MNLI and WSC are evaluated only, since they have no split "train".
PARTS = {
    "super_glue": glue_metrics.SUPER_GLUE,
    "glue": (*glue_metrics.GLUE, "mnli_matched", "mnli_mismatched"),
}


def register_mixtures(registered: Collection[str]) -> tuple[str, ...]:
    """Registers each suite at each of `RATES`, with those of its tasks that are registered.

    Returns:
      Names such as "taskless_super_glue_v102_examples_proportional".
    """
    names: tuple[str, ...] = ()
    for suite, parts in PARTS.items():
        suite_tasks = [b for b in BENCHMARKS if b.suite == suite and b.name in parts]
        for kind, rate in RATES.items():
            rates = [(task, rate(task) if "train" in task.splits else 0.0) for task in suite_tasks]
            name = f"taskless_{suite}_{VERSIONS[suite][1]}_examples_{kind}"
            names += text_task.add_mixture(name, rates, registered)
    return names


def of_tasks(names: Sequence[str]) -> str:
    """Registers a mixture of registered tasks at equal rates.

    Returns:
      Its name: the names of the tasks, joined by ".".

    Raises:
      UserError: If a name is not that of a registered task, or occurs twice.
    """
    registered = seqio.TaskRegistry.names()
    if unknown := [name for name in names if name not in registered]:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME = {list(names)}: no task {unknown[0]!r}; available: "
            f"{', '.join(sorted(registered))}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"MIXTURE_OR_TASK_NAME = {list(names)}: names a task twice")
    name = ".".join(names)
    tasks.add_mixture(name, dict.fromkeys(names, 1.0))
    return name
