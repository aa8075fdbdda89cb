"""Batches: which rows are together, how they are padded, and that results keep their order."""

import jax
import numpy as np
import pytest

from prompt_tuning import sharding
from prompt_tuning.decoding.batches import map_rows, plan, power


@pytest.mark.parametrize(
    ("lengths", "options", "rows", "shapes"),
    [
        ([3, 40, 17, 20, 1], {}, [[1, 3, 2, 0], [4]], [(4, 64), (1, 16)]),
        ([3, 40, 17, 20, 1], {"longest": 40}, [[1, 3, 2, 0], [4]], [(4, 40), (1, 16)]),
        ([5, 5, 5], {}, [[0, 1, 2]], [(4, 16)]),  # equal lengths keep their order
        ([5, 5, 5, 5, 16], {"fewest_rows": 2}, [[4, 0, 1, 2], [3]], [(4, 16), (2, 16)]),
        ([9] * 5, {"fewest_rows": 4, "longest": 12}, [[0, 1, 2, 3], [4]], [(4, 12), (4, 12)]),
        ([], {}, [], []),
    ],
)
def test_a_plan(lengths, options, rows, shapes):
    batches = plan(lengths, 4, **options)
    assert [batch.rows.tolist() for batch in batches] == rows
    assert [batch.shape for batch in batches] == shapes


def test_rows_come_back_in_their_order():
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 9, n).tolist() for n in (3, 40, 1, 17, 5, 2, 33)]
    arrays = {"row": np.arange(7), "none": None, "pair": np.arange(14).reshape(7, 2)}
    layout = sharding.layout(devices=jax.devices()[:2])
    shapes = []

    def sums(tokens, arrays):
        assert tokens.sharding.is_equivalent_to(layout.rows, 2) and arrays["none"] is None
        shapes.append(tokens.shape)
        return {"sum": tokens.sum(axis=1), "arrays": (arrays["row"], arrays["pair"])}

    results = map_rows(sums, ids, arrays, layout=layout, batch_size=4)
    assert shapes == [(4, 64), (4, 16)]
    np.testing.assert_array_equal(results["sum"], [sum(row) for row in ids])
    np.testing.assert_array_equal(results["arrays"][0], arrays["row"])
    np.testing.assert_array_equal(results["arrays"][1], arrays["pair"])


def test_powers():
    assert [power(n) for n in (1, 2, 3, 5)] == [1, 2, 4, 8]
    assert [power(n, 16) for n in (1, 16, 17, 65)] == [16, 16, 32, 128]
    assert power(7, 6) == 12
