"""SeqIO's registries, put back after a test."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def clean_registries() -> Iterator[None]:
    """Removes the tasks and mixtures that are registered in the block, and restores labels."""
    from prompt_tuning.data import tasks
    from prompt_tuning.data.quiet import seqio

    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    names_before = [set(registry.names()) for registry in registries]
    tables = (tasks.LABELS, tasks.HIDDEN_SPLITS)
    tables_before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for registry, names in zip(registries, names_before, strict=True):
            for added in set(registry.names()) - names:
                registry.remove(added)
        for table, before in zip(tables, tables_before, strict=True):
            table.clear()
            table.update(before)
