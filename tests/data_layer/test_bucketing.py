import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning.data.bucketing import bucket_of, bucketed, default_bounds

BOUNDS = (4, 8, 16)
EXAMPLE = st.tuples(
    st.lists(st.integers(3, 99), min_size=1, max_size=15),
    st.lists(st.integers(3, 99), min_size=1, max_size=4),
)


@pytest.mark.parametrize(
    ("limit", "bounds"),
    [(128, (16, 32, 64, 128)), (100, (16, 32, 64, 100)), (16, (16,)), (5, (5,))],
)
def test_default_bounds(limit, bounds):
    assert default_bounds(limit) == bounds


def test_input_longer_than_the_last_bucket_is_an_error():
    with pytest.raises(ValueError, match="17 tokens is longer than the last bucket, 16"):
        bucket_of(17, BOUNDS)


@given(st.lists(EXAMPLE, max_size=40), st.integers(1, 5))
def test_each_example_once_and_in_its_bucket(examples, batch_size):
    with_end = [([*source, 1], [*target, 1]) for source, target in examples]
    seen = []
    for batch in bucketed(with_end, BOUNDS, batch_size, target_length=6):
        inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
        assert inputs.shape[0] == batch_size
        assert inputs.shape[1] in BOUNDS
        for source, target, shifted in zip(
            inputs, targets, batch["decoder_input_tokens"], strict=True
        ):
            if source.any():
                real = np.count_nonzero(target)
                assert list(shifted[:real]) == [0, *target[: real - 1]]
                length = np.count_nonzero(source)
                assert bucket_of(length, BOUNDS) == inputs.shape[1]
                seen.append((list(source[:length]), list(target[target > 0])))
    assert sorted(seen) == sorted(with_end)
