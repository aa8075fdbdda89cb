"""Bottleneck adapters (Houlsby et al., 2019; Pfeiffer et al., 2021)."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
from jax import Array
from jaxtyping import Float

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Method
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.layers import matmul, over_last, partitioned_param
from prompt_tuning.transformer.sites import Place

VARIANTS = ("houlsby", "pfeiffer")


@dataclasses.dataclass(frozen=True)
class Adapter(Method):
    """y + gelu(y W + b) W' + b' after a block: 2 D m + D + m parameters each.

    The model starts as the backbone.

    Attributes:
      bottleneck: width m of the bottleneck.
      variant: "houlsby", after every attention and feed-forward block (two per encoder layer, three
        per decoder layer), or "pfeiffer", after feed-forward blocks only.
      layers: indices, from 0, of the layers of both stacks that get adapters; None for all.
    """

    bottleneck: int = 32
    variant: str = "houlsby"
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        choices.positive("ADAPTER_BOTTLENECK", self.bottleneck)
        choices.freeze(self, "layers")
        if self.variant not in VARIANTS:
            raise ValueError(
                f"ADAPTER_VARIANT = {self.variant!r}: choose from {', '.join(VARIANTS)}"
            )

    def check(self, config: Config) -> None:
        choices.layers("ADAPTER_LAYERS", self.layers, choices.deepest(config), config)

    def sublayer(
        self, y: Float[Array, "batch length embed"], place: Place
    ) -> Float[Array, "batch length embed"]:
        if not choices.has(self.layers, place):
            return y
        if self.variant == "pfeiffer" and place.block != "mlp":
            return y
        return y + Bottleneck(self.bottleneck, name=f"adapter_{place.block}")(y)


class Bottleneck(nn.Module):
    """Projects [..., D] to m units and back; the projection back starts at zero."""

    size: int

    @nn.compact
    def __call__(self, y: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        width, zeros = y.shape[-1], nn.initializers.zeros
        normal = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        down = partitioned_param(self, "down", normal, ("embed", None), (width, self.size))
        down_bias = partitioned_param(self, "down_bias", zeros, (None,), (self.size,))
        up = partitioned_param(self, "up", zeros, (None, "embed"), (self.size, width))
        up_bias = partitioned_param(self, "up_bias", zeros, ("embed",), (width,))
        hidden = matmul(y, down, y.dtype)
        hidden = nn.gelu(hidden + over_last(down_bias, hidden).astype(y.dtype))
        return matmul(hidden, up, y.dtype) + over_last(up_bias, y).astype(y.dtype)
