"""T5: the encoder-decoder with relative positions."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.t5.config import T5Config
from prompt_tuning.transformer.blocks import Attended
from prompt_tuning.transformer.layers import ArrayLike, attention_bias, partitioned_param
from prompt_tuning.transformer.network import EncoderDecoder


class Biased(Attended):
    """Relative positions and mask of a stack: one bias [B, heads, Q, K] for all layers."""

    bias: Array

    def at(self, layer: int | Array) -> tuple[Array, None]:
        return self.bias, None


class T5(EncoderDecoder):
    """T5; parameters have T5X's paths.

    T5 v1.0 divides its tied logits by sqrt(D).
    """

    config: T5Config

    @staticmethod
    def positions(
        config: T5Config, stack: str, queries: Array, keys: Array, visible: Array
    ) -> Attended:
        relative = RelativePositionBias(config, stack == "encoder", name="relpos_bias")
        return Biased(relative(queries, keys) + attention_bias(visible))

    def tied_logits(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
        return self.token_embedder.attend(x) / np.sqrt(self.config.d_model)


def relative_buckets(
    relative_position: Int[ArrayLike, "*shape"],
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> Int[Array, "*shape"]:
    """Bucket ids (T5) of `relative_position` = key position - query position.

    Bidirectional: keys after the query use the upper half of the buckets. Causal: all buckets are
    for the past, and the future is clipped to distance 0. Of a direction's n buckets, the first n/2
    hold one distance each; the others are logarithmic up to `max_distance`.
    """
    distance = -jnp.asarray(relative_position, jnp.int32)
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance < 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(distance, 0)
    exact = num_buckets // 2
    eps = np.finfo(np.float32).eps
    ratio = jnp.log(distance.astype(jnp.float32) / exact + eps) / np.log(max_distance / exact)
    logarithmic = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(logarithmic, num_buckets - 1))


class RelativePositionBias(nn.Module):
    """Additive attention bias of a stack: `rel_embedding` [heads, buckets], float32."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(
        self, query_positions: Int[Array, "batch queries"], key_positions: Int[Array, "batch keys"]
    ) -> Float[Array, "batch heads queries keys"]:
        """Returns the bias [B, heads, Q, K] for positions [B, Q] and [B, K]."""
        cfg = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        shape = (cfg.num_heads, cfg.relative_buckets)
        axes = ("heads", "relpos_buckets")
        table = partitioned_param(self, "rel_embedding", init, axes, shape)
        relative = key_positions[..., None, :] - query_positions[..., :, None]
        buckets = relative_buckets(
            relative, self.bidirectional, cfg.relative_buckets, cfg.relative_max_distance
        )
        bias = jnp.take(table.T.astype(jnp.float32), buckets, axis=0)  # [B, Q, K, heads]
        return jnp.moveaxis(bias, -1, -3)
