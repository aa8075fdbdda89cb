"""Fixtures of the tests of `prompt_tuning/data/`."""

from collections.abc import Iterator

import pytest
import seqio

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.testing import clean_registries


@pytest.fixture(scope="session")
def vocabulary() -> seqio.SentencePieceVocabulary:
    return tasks.vocabulary(embedded.vocabulary())


@pytest.fixture(scope="module", autouse=True)
def _unregisters_after_a_module() -> Iterator[None]:
    with clean_registries():
        yield


@pytest.fixture(autouse=True)
def _unregisters_after_a_test() -> Iterator[None]:
    with clean_registries():
        yield
