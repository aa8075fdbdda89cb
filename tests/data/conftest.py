"""Fixtures of the tests of `prompt_tuning/data/`."""

import pytest
import seqio

from prompt_tuning.data import tasks


@pytest.fixture(scope="session")
def vocabulary() -> seqio.SentencePieceVocabulary:
    return tasks.vocabulary(tasks.EMBEDDED_VOCABULARY)


@pytest.fixture
def clean_registries():
    """Takes back what a test registers."""
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [set(registry.names()) for registry in registries]
    words, hidden = dict(tasks.LABELS), dict(tasks.HIDDEN_SPLITS)
    yield
    for registry, names in zip(registries, before, strict=True):
        for added in set(registry.names()) - names:
            registry.remove(added)
    for kept, saved in ((tasks.LABELS, words), (tasks.HIDDEN_SPLITS, hidden)):
        kept.clear()
        kept.update(saved)
