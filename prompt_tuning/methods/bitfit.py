"""BitFit (Zaken et al., 2022): biases. T5 v1.1 has none, so they are added to its projections."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
from jax import Array
from jaxtyping import Float

from prompt_tuning.methods.base import Method
from prompt_tuning.transformer.layers import over_last, partitioned_param
from prompt_tuning.transformer.sites import Place


@dataclasses.dataclass(frozen=True)
class BitFit(Method):
    """A bias on each projection except the keys', and the backbone's norm scales.

    The model starts as the backbone. A bias on the keys would change nothing, as it adds the same
    to all logits of a query. An attention block has 2 H head_dim + D parameters, a feed-forward
    block d_ff per input projection and D, a norm D.
    """

    def trains(self, path: str, added: bool) -> bool:
        return added or path.endswith("norm/scale")

    def linear(
        self,
        call: Callable[[Array], Array],
        x: Float[Array, "*batch inputs"],
        place: Place,
        projection: str,
    ) -> Float[Array, "*batch outputs"]:
        y = call(x)
        return y if projection == "key" else Bias(name=f"bias_{projection}")(y)


class Bias(nn.Module):
    """y + bias, one value per channel, starting at zero."""

    @nn.compact
    def __call__(self, y: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        zeros = nn.initializers.zeros
        bias = partitioned_param(self, "bias", zeros, (None,), (y.shape[-1],))
        return y + over_last(bias, y).astype(y.dtype)
