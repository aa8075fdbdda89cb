"""Paths of parameters: nested trees and flat dicts, one form for all modules."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

Params = Mapping[str, Any]  # a nested dict of arrays
EMBEDDING = "token_embedder/embedding"  # the encoder's embedding table [V, D] in every family
# The decoder's, in families where the stacks have tables of their own.
DECODER_EMBEDDING = "decoder_token_embedder/embedding"


def flatten(params: Params) -> dict[str, Any]:
    """Flattens a nested dict to {"encoder/layers_0/...": leaf}, sorted, so that all processes
    iterate over leaves in the same order.
    """
    return dict(sorted(flatten_dict(params, sep="/").items()))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nests a flat dict; the inverse of `flatten`."""
    return unflatten_dict(dict(leaves), sep="/")


def join(a: Params, b: Params) -> dict[str, Any]:
    """Joins two trees into one.

    Raises:
      ValueError: if a path is in both trees.
    """
    left, right = flatten(a), flatten(b)
    if both := sorted(left.keys() & right.keys()):
        raise ValueError(f"leaves both trained and frozen: {both}")
    return unflatten(left | right)
