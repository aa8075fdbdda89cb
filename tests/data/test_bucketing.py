import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning.data.batching.bucketing import (
    bucket_of,
    bucketed,
    constant_tokens,
    default_bounds,
    pad,
)
from prompt_tuning.errors import UserError

BOUNDS = (4, 8, 16)
EXAMPLE = st.tuples(
    st.lists(st.integers(3, 99), min_size=1, max_size=15),
    st.lists(st.integers(3, 99), min_size=1, max_size=4),
)


@pytest.mark.parametrize(
    ("limit", "bounds"),
    [(64, (8, 12, 16, 24, 32, 48, 64)), (20, (8, 12, 16, 20)), (8, (8,)), (5, (5,))],
)
def test_default_bounds(limit, bounds):
    assert default_bounds(limit) == bounds


def test_input_longer_than_the_last_bucket_is_an_error():
    with pytest.raises(ValueError, match="17 tokens is longer than the last bucket, 16"):
        bucket_of(17, BOUNDS)


@given(st.lists(EXAMPLE, max_size=40), st.tuples(*[st.integers(1, 5)] * 3))
def test_each_example_once_and_in_its_bucket(examples, rows_of_a_batch):
    sizes = dict(zip(BOUNDS, rows_of_a_batch, strict=True))
    with_end = [([*source, 1], [*target, 1]) for source, target in examples]
    seen = []
    for bound, rows in bucketed(with_end, sizes):
        batch = pad(rows, bound, target_length=6)
        inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
        assert inputs.shape == (sizes[bound], bound)
        for source, target, shifted in zip(
            inputs, targets, batch["decoder_input_tokens"], strict=True
        ):
            if source.any():
                real = np.count_nonzero(target)
                assert list(shifted[:real]) == [0, *target[: real - 1]]
                length = np.count_nonzero(source)
                assert bucket_of(length, BOUNDS) == bound
                seen.append((list(source[:length]), list(target[target > 0])))
    assert sorted(seen) == sorted(with_end)


@pytest.mark.parametrize(
    ("tokens", "multiple", "rows"),
    [(64, 1, (16, 8, 4)), (100, 1, (25, 12, 6)), (100, 4, (24, 12, 4)), (16, 1, (4, 2, 1))],
)
def test_constant_tokens(tokens, multiple, rows):
    assert constant_tokens(BOUNDS, tokens, multiple) == dict(zip(BOUNDS, rows, strict=True))


def test_a_budget_that_does_not_hold_the_longest_bucket():
    with pytest.raises(UserError, match=r"TOKENS_PER_BATCH = 63: too few for 4 rows .*at least 64"):
        constant_tokens(BOUNDS, 63, 4)


def test_one_example_a_row_as_t5x_lays_it_out():
    batch = pad([[([5, 6, 1], [7, 1])], []], 4, 3)
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "encoder_input_tokens": [[5, 6, 1, 0], [0, 0, 0, 0]],
        "decoder_input_tokens": [[0, 7, 1], [0, 0, 0]],
        "decoder_target_tokens": [[7, 1, 0], [0, 0, 0]],
        "decoder_loss_weights": [[1, 1, 0], [0, 0, 0]],
    }
