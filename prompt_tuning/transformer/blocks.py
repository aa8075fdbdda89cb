"""A layer of each stack, and the ways to compile a stack: layer by layer, or as a scan."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.layers import Attention, Mlp, RMSNorm, dropout
from prompt_tuning.transformer.sites import BLOCKS, Place, Sites

KeysValues = tuple[Array, Array]


class Attended(flax.struct.PyTreeNode):
    """Base of a family's positions and masks of self-attention, which are made once per stack."""

    def at(self, layer: int | Array) -> tuple[Array, Callable[[Array], Array] | None]:
        """The bias, broadcastable to [B, heads, Q, K], and `rotate` of `Attention` in a layer."""
        raise NotImplementedError


class EncoderLayer(nn.Module):
    config: Config
    sites: Sites
    enable_dropout: bool
    layer: int | None = None  # None in a scan, which passes it as an argument

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        layer: Int[Array, ""] | None,
        attended: Attended,
        real: Float[Array, "batch length 1"],
        shared: Any,
    ) -> tuple[Float[Array, "batch length embed"], None]:
        cfg, sites = self.config, self.sites
        index = cast(int, self.layer) if layer is None else layer
        attention, mlp = (Place("encoder", index, block) for block in BLOCKS["encoder"])
        bias, rotate = attended.at(index)
        y = normed(self, "pre_attention_layer_norm", x) * real
        attend = Attention(cfg, sites, attention, name=attention.block)
        options = {"shared": shared, "enable_dropout": self.enable_dropout}
        y, _ = attend(y, y, bias, rotate=rotate, **options)
        x = added(self, x, y, attention, "post_attention_layer_norm")
        y = normed(self, "pre_mlp_layer_norm", x) * real
        y = Mlp(cfg, sites, mlp, name=mlp.block)(y, enable_dropout=self.enable_dropout)
        x = added(self, x, y, mlp, "post_mlp_layer_norm")
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), None


class DecoderLayer(nn.Module):
    config: Config
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
        encoded: Float[Array, "rows inputs encoder_embed"],
        attended: Attended,
        cross_bias: Float[Array, "rows 1 shared_length inputs"],
        real: Float[Array, "batch length 1"],
        shared: Any,
        index: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "batch length embed"], tuple[KeysValues, KeysValues] | None]:
        """Returns x, and in cached decoding the keys and values of x and those of `encoded`."""
        cfg, sites = self.config, self.sites
        number = cast(int, self.layer) if layer is None else layer
        causal, across, mlp = (Place("decoder", number, block) for block in BLOCKS["decoder"])
        options = {"shared": shared, "enable_dropout": self.enable_dropout}
        bias, rotate = attended.at(number)
        y = normed(self, "pre_self_attention_layer_norm", x) * real
        attend = Attention(cfg, sites, causal, name=causal.block)
        y, kv = attend(y, y, bias, rotate=rotate, cache=cache, index=index, **options)
        x = added(self, x, y, causal, "post_self_attention_layer_norm")
        y = normed(self, "pre_cross_attention_layer_norm", x) * real
        attend = Attention(cfg, sites, across, name=across.block)
        y, cross = attend(y, encoded if cross is None else cross, cross_bias, **options)
        x = added(self, x, y, across, "post_cross_attention_layer_norm")
        y = normed(self, "pre_mlp_layer_norm", x) * real
        y = Mlp(cfg, sites, mlp, name=mlp.block)(y, enable_dropout=self.enable_dropout)
        x = added(self, x, y, mlp, "post_mlp_layer_norm")
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return x, None if cache is None else (kv, cross)


def normed(module: Any, name: str, x: Array) -> Array:
    """x through a norm of the module's family.

    The callers zero padding after norms, as Flaxformer does, so that T5's arrays agree there too.
    """
    config = module.config
    return RMSNorm(jnp.dtype(config.dtype), config.architecture.norm_offset, name=name)(x)


def added(module: Any, x: Array, y: Array, place: Place, name: str) -> Array:
    """The residual sum x + y after a block; `name` is that of the norm of y, if there is one."""
    if module.config.architecture.post_norms:
        y = normed(module, name, y)
    y = module.sites.sublayer(y, place)
    return x + dropout(y, module.config.dropout_rate, module, module.enable_dropout)


def remat(layer: type[nn.Module], config: Config) -> Any:
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
