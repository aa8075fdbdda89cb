"""LoRA (Hu et al., 2021): low-rank updates of chosen projections."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from jax import Array
from jaxtyping import Float

from prompt_tuning.errors import real_number
from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Method
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.layers import matmul, partitioned_param
from prompt_tuning.transformer.sites import Place


@dataclasses.dataclass(frozen=True)
class LoRA(Method):
    """x W + (alpha / r) x A B: r (in + out) parameters per projection.

    The model starts as the backbone.

    Attributes:
      rank: rank r of the updates.
      alpha: numerator of the scale alpha / r.
      projections: names from `Config.projections`; updated in every block that has them.
      layers: indices, from 0, of the layers of both stacks that are updated; None for all.
    """

    rank: int = 8
    alpha: float = 16.0
    projections: Sequence[str] = ("query", "value")
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        choices.positive("LORA_RANK", self.rank)
        if not real_number("LORA_ALPHA", self.alpha):
            raise ValueError("LORA_ALPHA = 0: the updates would be nothing; give another number")
        choices.freeze(self, "projections", "layers")

    def check(self, config: Config) -> None:
        choices.projections("LORA_PROJECTIONS", self.projections, config)
        choices.layers("LORA_LAYERS", self.layers, choices.deepest(config), config)

    def linear(
        self,
        call: Callable[[Array], Array],
        x: Float[Array, "*batch inputs"],
        place: Place,
        projection: str,
    ) -> Float[Array, "*batch outputs"]:
        y = call(x)
        if projection not in self.projections or not choices.has(self.layers, place):
            return y
        update = LowRank(self.rank, y.shape[-1], name=f"lora_{projection}")(x)
        return y + update * (self.alpha / self.rank)

    def merge(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        choices.floats(leaves)
        merged = {path: leaf for path, leaf in leaves.items() if "/lora_" not in path}
        for path, a in leaves.items():
            if "/lora_" in path and path.endswith("/a"):
                b = leaves[path.removesuffix("a") + "b"]
                kernel = path.removesuffix("/a").replace("/lora_", "/") + "/kernel"
                merged[kernel] = merged[kernel] + (self.alpha / self.rank) * (a @ b)
        return merged


class LowRank(nn.Module):
    """x [..., in] @ a [in, r] @ b [r, out]; a starts as in PEFT: uniform, variance 1 / (3 in)."""

    rank: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = partitioned_param(self, "a", uniform, (None, None), (x.shape[-1], self.rank))
        zeros = nn.initializers.zeros
        b = partitioned_param(self, "b", zeros, (None, None), (self.rank, self.features))
        return matmul(matmul(x, a, x.dtype), b, x.dtype)
