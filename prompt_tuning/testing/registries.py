"""SeqIO's registries, restored after a test."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def clean_registries() -> Iterator[None]:
    """Restores SeqIO's tasks and mixtures to those that were registered before the block."""
    from prompt_tuning.data.quiet import seqio

    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [{name: registry.get(name) for name in registry.names()} for registry in registries]
    try:
        yield
    finally:
        for registry, providers in zip(registries, before, strict=True):
            registry.reset()
            for name, provider in providers.items():
                registry.add_provider(name, provider)
