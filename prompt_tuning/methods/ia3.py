"""IA3 (Liu et al., 2022): learned scales of keys, values and feed-forward activations."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jax import Array
from jaxtyping import Float

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Method
from prompt_tuning.transformer.layers import over_last, partitioned_param
from prompt_tuning.transformer.sites import Place


@dataclasses.dataclass(frozen=True)
class IA3(Method):
    """Scales of keys, values and hidden units; the model starts as the backbone.

    2 H head_dim parameters per attention block, d_ff per feed-forward block.
    """

    def linear(
        self,
        call: Callable[[Array], Array],
        x: Float[Array, "*batch inputs"],
        place: Place,
        projection: str,
    ) -> Float[Array, "*batch outputs"]:
        if projection in ("key", "value"):
            return Scale(name=f"ia3_{projection}")(call(x))
        if projection == "wo":
            return call(Scale(name="ia3_wo")(x))
        return call(x)

    def merge(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        choices.floats(leaves)
        merged = {path: leaf for path, leaf in leaves.items() if "/ia3_" not in path}
        for path, scale in leaves.items():
            if "/ia3_" in path:
                kernel = path.removesuffix("/scale").replace("/ia3_", "/") + "/kernel"
                # The scale multiplies the input of `wo`, the output of the other projections.
                rows = scale[:, None] if kernel.endswith("/wo/kernel") else scale
                merged[kernel] = merged[kernel] * rows
        return merged


class Scale(nn.Module):
    """x * scale, one value per channel, starting at one."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        ones = nn.initializers.ones
        scale = partitioned_param(self, "scale", ones, (None,), (x.shape[-1],))
        return x * over_last(scale, x).astype(x.dtype)
