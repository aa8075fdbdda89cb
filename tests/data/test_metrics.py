"""Metrics over texts."""

import pytest

from prompt_tuning.data.metrics import accuracy


def test_accuracy_is_a_share():
    assert accuracy(["a", "b", "c", "d"], ["a", "x", "c", "D"]) == {"accuracy": 0.5}
    assert accuracy(["a"], ["a"]) == {"accuracy": 1.0}
    assert accuracy(["a"], [""]) == {"accuracy": 0.0}


def test_white_space_around_does_not_count():
    assert accuracy([" a b", "a b"], ["a b\n", "ab"]) == {"accuracy": 0.5}


def test_pairs_must_match_up():
    with pytest.raises(ValueError, match="shorter"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one target"):
        accuracy([], [])
