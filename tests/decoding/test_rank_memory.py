"""Labels in parts: the same scores as all at once, in the memory that a setting allows."""

import functools

import jax
import numpy as np
import pytest

from prompt_tuning import decoding
from prompt_tuning.errors import UserError
from prompt_tuning.t5.network import T5
from prompt_tuning.testing import padded_tokens, tiny_config, tiny_model

LABELS, LENGTH = 13, 3
TOKENS, TARGETS = padded_tokens((4, 9)), padded_tokens((LABELS, LENGTH), seed=1)
CONFIG = tiny_config()
BYTES_OF_ONE = 4 * LENGTH * 4 * (CONFIG.vocab_size + CONFIG.num_heads * TOKENS.shape[1])


def program(most_bytes: float):
    score = functools.partial(decoding.score, T5(CONFIG), most_bytes=most_bytes)
    return jax.jit(score).lower(tiny_model().params, TOKENS, TARGETS).compile()


@pytest.fixture(scope="module")
def at_once():
    return program(LABELS * BYTES_OF_ONE)


@pytest.mark.parametrize("labels", [5, 0.001], ids=["3 parts", "13 parts"])
def test_labels_in_parts(at_once, labels):
    in_parts = program(labels * BYTES_OF_ONE)
    expected = at_once(tiny_model().params, TOKENS, TARGETS)
    # As tests/evaluation/test_evaluate.py: three logits and normalisers, rounded in both programs.
    np.testing.assert_allclose(
        in_parts(tiny_model().params, TOKENS, TARGETS), expected, rtol=0, atol=2 * 2 * 3 * 2e-5
    )
    temporary = [each.memory_analysis().temp_size_in_bytes for each in (in_parts, at_once)]
    assert temporary[0] < temporary[1]


@pytest.mark.parametrize("value", [0, -1.0, True, float("nan")])
def test_impossible_memory(value):
    with pytest.raises(UserError, match=r"^RANK_MEMORY_GIB = .*: must be "):
        decoding.rank_bytes(value)
