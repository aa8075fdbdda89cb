"""The division of leaves into trained and frozen, for gradient, optimizer, checkpoint, report."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.families import init_shapes
from prompt_tuning.methods.base import Method
from prompt_tuning.transformer import int8, narrow
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import Params, flatten, join, unflatten


@dataclasses.dataclass(frozen=True)
class ParamSplit:
    """The division of a model's leaves, by path.

    Attributes:
      shapes: Shape and dtype of every leaf by path; a QArray of them for an int8 matrix.
      added: Paths that the method adds: those of the model with it that the plain model lacks.
      trained: Paths of the trained leaves.
    """

    shapes: Mapping[str, jax.ShapeDtypeStruct]
    added: frozenset[str]
    trained: frozenset[str]

    @classmethod
    def of(cls, config: Config, method: Method) -> "ParamSplit":
        """Derives the split from shapes alone, without allocating anything.

        Raises:
          ValueError: If the method does not fit the backbone.
        """
        method.check(config)
        with_method = flatten(nn.unbox(init_shapes(config, method)))
        added = frozenset(with_method) - _plain_paths(config)
        trained = frozenset(path for path in with_method if method.trains(path, path in added))
        narrow = {
            path: _narrow(path, leaf, config, path in added)
            for path, leaf in with_method.items()
            if path not in trained and path.rpartition("/")[2] in ("kernel", "embedding")
        }
        return cls(with_method | narrow, added, trained)

    @property
    def frozen(self) -> frozenset[str]:
        return frozenset(self.shapes) - self.trained

    @property
    def backbone(self) -> frozenset[str]:
        return frozenset(self.shapes) - self.added

    def split(self, params: Params) -> tuple[dict, dict]:
        """Divides params into (trained, frozen): two pruned trees with unchanged paths."""
        leaves = flatten(params)
        self._check(leaves)
        trained = {path: leaf for path, leaf in leaves.items() if path in self.trained}
        frozen = {path: leaf for path, leaf in leaves.items() if path in self.frozen}
        return unflatten(trained), unflatten(frozen)

    def merge(self, trained: Params, frozen: Params) -> dict:
        """Inverts `split`.

        Raises:
          ValueError: If the trees overlap or do not cover the model; names the paths.
        """
        params = join(trained, frozen)
        self._check(flatten(params))
        return params

    def labels(self, params: Params) -> dict:
        """Returns a tree like `params` of "train" and "frozen", for `optax.multi_transform`."""
        return unflatten(
            {path: "train" if path in self.trained else "frozen" for path in flatten(params)}
        )

    def count(self, paths: frozenset[str]) -> int:
        """Returns the number of parameters at `paths`."""
        return sum(math.prod(self.shapes[path].shape) for path in paths)

    def _check(self, leaves: Mapping[str, Any]) -> None:
        if missing := sorted(self.shapes.keys() - leaves.keys()):
            raise ValueError(f"missing leaves: {missing}")
        if unknown := sorted(leaves.keys() - self.shapes.keys()):
            raise ValueError(f"leaves that the model does not have: {unknown}")


@functools.cache
def _plain_paths(config: Config) -> frozenset[str]:
    return frozenset(flatten(nn.unbox(init_shapes(config))))


def _narrow(path: str, leaf: jax.ShapeDtypeStruct, config: Config, added: bool) -> Any:
    dtype = config.frozen_dtype
    if dtype == int8.INT8:
        return jax.eval_shape(functools.partial(int8.quantize, path=path), leaf)
    # Products that round would round these kernels at every step, to the same values.
    if (
        dtype == "float32"
        and path.endswith("/kernel")
        and not added
        and config.dtype != "float16"
        and narrow.rounds(config.products)
    ):
        dtype = "bfloat16"
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
