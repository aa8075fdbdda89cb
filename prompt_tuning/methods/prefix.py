"""Prefix tuning (Li and Liang, 2021): trained keys and values in every attention block."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import Array

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Method
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.layers import partitioned_param
from prompt_tuning.t5.sites import BLOCKS, Attend, Place


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Method):
    """P keys and values in front of those of encoder, decoder and cross attention, in each layer:
    2 P H head_dim parameters a block. Every query sees them, at relative bias 0.

    Attributes:
      length: P.
      hidden: size h of the network that makes a kind of block's prefix while it is trained, from
        P D inputs: (D h + h) + (h + 1) 2 layers H head_dim parameters more. 0 trains the keys and
        values themselves.
      gated: attend to the prefix apart, times tanh of a gate a head and layer that starts at 0
        (zero-initialised attention, Zhang et al., 2023): starts as the backbone.
    """

    length: int = 20
    hidden: int = 0
    gated: bool = False

    def __post_init__(self) -> None:
        choices.positive("PREFIX_LENGTH", self.length)
        if self.hidden < 0:
            raise ValueError(f"PREFIX_HIDDEN = {self.hidden}: must be 0, for no network, or above")

    def shared(self, stack: str, config: T5Config) -> Any:
        """Block to keys and values [layers, 2, P, H, head_dim], and gates [layers, H] or None."""
        blocks = [block for block in BLOCKS[stack] if block != "mlp"]
        return {block: self._maker(stack, config, f"prefix_{block}")() for block in blocks}

    def attention(
        self,
        call: Attend,
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None,
        place: Place,
        shared: Any,
    ) -> Array:
        prefix, gates = shared[place.block]
        batch = (key.shape[0], *prefix.shape[2:])
        first, second = (
            jnp.broadcast_to(own, batch).astype(key.dtype) for own in prefix[place.layer]
        )
        if gates is not None:
            gate = jnp.tanh(gates[place.layer])[:, None].astype(key.dtype)
            return call(query, key, value, bias) + gate * call(query, first, second, None)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (self.length, 0)))
        key = jnp.concatenate([first, key], axis=1)
        return call(query, key, jnp.concatenate([second, value], axis=1), bias)

    def folded(self) -> Method:
        return dataclasses.replace(self, hidden=0)

    def fold(self, leaves: Mapping[str, np.ndarray], config: T5Config) -> dict[str, np.ndarray]:
        kept = {path: leaf for path, leaf in leaves.items() if "/prefix_" not in path}
        for stack, blocks in BLOCKS.items():
            for block in blocks[:-1]:
                own = f"{stack}/prefix_{block}/"
                params = {p.removeprefix(own): x for p, x in leaves.items() if p.startswith(own)}
                variables = {"params": unflatten_dict(params, sep="/")}
                made, gates = self._maker(stack, config).apply(variables)
                kept[f"{own}keys_values"] = np.asarray(made, np.float32)
                if gates is not None:
                    kept[f"{own}gates"] = params["gates"]
        return kept

    def _maker(self, stack: str, config: T5Config, name: str | None = None) -> "Prefix":
        layers = config.num_encoder_layers if stack == "encoder" else config.num_decoder_layers
        shape = (layers, 2, self.length, config.num_heads, config.head_dim)
        return Prefix(shape, config.d_model, self.hidden, self.gated, name=name)


class Prefix(nn.Module):
    """Keys and values [layers, 2, P, H, head_dim] of a kind of block, and its gates."""

    shape: tuple[int, ...]
    width: int
    hidden: int
    gated: bool

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        layers, _, length, heads, head_dim = self.shape
        axes = (None, None, "prompt", "heads", "kv")
        if self.hidden:
            x = self.param("inputs", nn.initializers.normal(1.0), (length, self.width), jnp.float32)
            x = nn.tanh(nn.Dense(self.hidden, name="hidden")(x))
            x = nn.Dense(layers * 2 * heads * head_dim, name="out")(x)
            made = jnp.moveaxis(x.reshape(length, layers, 2, heads, head_dim), 0, 2)
        else:
            normal = nn.initializers.normal(0.1)
            made = partitioned_param(self, "keys_values", normal, axes, self.shape)
        if not self.gated:
            return made, None
        zeros = nn.initializers.zeros
        return made, partitioned_param(self, "gates", zeros, (None, "heads"), (layers, heads))
