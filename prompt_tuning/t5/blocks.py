"""A layer of each stack, and the ways to compile a stack: layer by layer, or as a scan."""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.layers import Attention, Mlp, RMSNorm, dropout
from prompt_tuning.t5.sites import BLOCKS, Place, Sites

KeysValues = tuple[Array, Array]


class EncoderLayer(nn.Module):
    config: T5Config
    sites: Sites
    enable_dropout: bool
    layer: int | None = None  # None in a scan, which passes it as an argument

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        layer: Int[Array, ""] | None,
        bias: Float[Array, "batch heads length length"],
        real: Float[Array, "batch length 1"],
        shared: Any,
    ) -> tuple[Float[Array, "batch length embed"], None]:
        cfg, sites, dtype = self.config, self.sites, jnp.dtype(self.config.dtype)
        enable_dropout = self.enable_dropout
        index = cast(int, self.layer) if layer is None else layer
        attention, mlp = (Place("encoder", index, block) for block in BLOCKS["encoder"])
        # As in Flaxformer, padding is zeroed after every norm, so that arrays agree there too.
        y = RMSNorm(dtype, name="pre_attention_layer_norm")(x) * real
        attend = Attention(cfg, sites, attention, name=attention.block)
        y, _ = attend(y, y, bias, shared=shared, enable_dropout=enable_dropout)
        y = sites.sublayer(y, attention)
        x = x + dropout(y, cfg.dropout_rate, self, enable_dropout)
        y = RMSNorm(dtype, name="pre_mlp_layer_norm")(x) * real
        y = Mlp(cfg, sites, mlp, name=mlp.block)(y, enable_dropout=enable_dropout)
        y = sites.sublayer(y, mlp)
        x = x + dropout(y, cfg.dropout_rate, self, enable_dropout)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), None


class DecoderLayer(nn.Module):
    config: T5Config
    sites: Sites
    enable_dropout: bool
    layer: int | None = None  # None in a scan, which passes it as an argument

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        layer: Int[Array, ""] | None,
        cache: KeysValues | None,
        cross: KeysValues | None,
        encoded: Float[Array, "rows inputs embed"],
        self_bias: Float[Array, "#batch heads length keys"],
        cross_bias: Float[Array, "rows 1 shared_length inputs"],
        real: Float[Array, "batch length 1"],
        shared: Any,
        index: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch length embed"], tuple[KeysValues, KeysValues] | None]:
        """Returns x, and in cached decoding the keys and values of x and those of `encoded`."""
        cfg, sites, dtype = self.config, self.sites, jnp.dtype(self.config.dtype)
        enable_dropout = self.enable_dropout
        number = cast(int, self.layer) if layer is None else layer
        causal, across, mlp = (Place("decoder", number, block) for block in BLOCKS["decoder"])
        options = {"shared": shared, "enable_dropout": enable_dropout}
        y = RMSNorm(dtype, name="pre_self_attention_layer_norm")(x) * real
        attend = Attention(cfg, sites, causal, name=causal.block)
        y, kv = attend(y, y, self_bias, cache=cache, index=index, **options)
        y = sites.sublayer(y, causal)
        x = x + dropout(y, cfg.dropout_rate, self, enable_dropout)
        y = RMSNorm(dtype, name="pre_cross_attention_layer_norm")(x) * real
        attend = Attention(cfg, sites, across, name=across.block)
        y, cross = attend(y, encoded if cross is None else cross, cross_bias, **options)
        y = sites.sublayer(y, across)
        x = x + dropout(y, cfg.dropout_rate, self, enable_dropout)
        y = RMSNorm(dtype, name="pre_mlp_layer_norm")(x) * real
        y = Mlp(cfg, sites, mlp, name=mlp.block)(y, enable_dropout=enable_dropout)
        y = sites.sublayer(y, mlp)
        x = x + dropout(y, cfg.dropout_rate, self, enable_dropout)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return x, None if cache is None else (kv, cross)


def remat(layer: type[nn.Module], config: T5Config) -> Any:
    """Wraps a layer so that its backward pass recomputes what `config.remat` says."""
    policies = {
        "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    if config.remat == "none":
        return layer
    return nn.remat(layer, policy=policies[config.remat], prevent_cse=not config.scan_layers)


def scan(layer: Any, count: int, *, layers: int, shared: int) -> Any:
    """Scans `count` layers over x.

    After x, a layer takes `layers` arguments that are stacked, one slice per layer, and then
    `shared` arguments that are the same for all layers.
    """
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0,) * layers + (nn.broadcast,) * shared,
        length=count,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def stack(trees: Sequence[Any]) -> Any:
    """Stacks the leaves of trees of the same structure along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
