"""Which leaves are trained: decided here once, for gradient, optimizer, checkpoint and report."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

Params = Mapping[str, Any]  # a nested dict of arrays


def flatten(params: Params) -> dict[str, Any]:
    """Nested to flat: {"encoder/layers_0/...": leaf}, in the same order on all processes."""
    return dict(sorted(flatten_dict(params, sep="/").items()))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Flat to nested."""
    return unflatten_dict(dict(leaves), sep="/")


def join(a: Params, b: Params) -> dict[str, Any]:
    """One tree of the leaves of both.

    Raises:
      ValueError: naming the paths that are in both.
    """
    left, right = flatten(a), flatten(b)
    if both := sorted(left.keys() & right.keys()):
        raise ValueError(f"leaves both trained and frozen: {both}")
    return unflatten(left | right)
