"""Prefix tuning (Li and Liang, 2021): trained keys and values in every attention block."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Method
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.layers import ArrayLike, partitioned_param
from prompt_tuning.transformer.paths import unflatten
from prompt_tuning.transformer.sites import BLOCKS, Attend, Place


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Method):
    """Puts P trained keys and values in front of those of every attention block.

    Blocks of encoder, decoder and cross attention have 2 P H head_dim parameters each. Every query
    sees the prefix, at relative bias 0.

    Attributes:
      length: number of prefix positions, P.
      hidden: width h of the network that computes the prefixes of each kind of block during
        training, from P D inputs: (D h + h) + (h + 1) 2 layers H head_dim further parameters. 0
        trains keys and values directly.
      gated: whether the prefix is attended to separately, times tanh of a gate per head and layer
        that starts at 0 (zero-initialised attention, Zhang et al., 2023); the model then starts as
        the backbone.
    """

    length: int = 20
    hidden: int = 0
    gated: bool = False

    def __post_init__(self) -> None:
        choices.positive("PREFIX_LENGTH", self.length)
        if self.hidden < 0:
            raise ValueError(f"PREFIX_HIDDEN = {self.hidden}: must be 0 (no network) or positive")

    def shared(self, stack: str, config: Config) -> Any:
        """Maps each block to its prefix, as `Prefix` returns it."""
        blocks = [block for block in BLOCKS[stack] if block != "mlp"]
        return {block: self._prefix(stack, config, f"prefix_{block}")() for block in blocks}

    def attention(
        self,
        call: Attend,
        query: Float[Array, "batch queries heads head_dim"],
        key: Float[Array, "batch keys key_heads head_dim"],
        value: Float[Array, "batch keys key_heads head_dim"],
        bias: Float[Array, "#batch #heads queries keys"] | None,
        place: Place,
        shared: Any,
    ) -> Float[Array, "batch queries heads head_dim"]:
        prefix, gates = shared[place.block]
        batch = (key.shape[0], *prefix.shape[2:])
        first, second = (
            jnp.broadcast_to(half, batch).astype(key.dtype) for half in prefix[place.layer]
        )
        if gates is not None:
            gate = jnp.tanh(gates[place.layer])[None, None, :, None].astype(key.dtype)
            return call(query, key, value, bias) + gate * call(query, first, second, None)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (self.length, 0)))
        key = jnp.concatenate([first, key], axis=1)
        return call(query, key, jnp.concatenate([second, value], axis=1), bias)

    def folded(self) -> Method:
        return dataclasses.replace(self, hidden=0)

    def fold(self, leaves: Mapping[str, Any], config: Config) -> dict[str, Any]:
        folded = {path: leaf for path, leaf in leaves.items() if "/prefix_" not in path}
        for stack, blocks in BLOCKS.items():
            for block in blocks[:-1]:
                parent = f"{stack}/prefix_{block}/"
                params = {
                    path.removeprefix(parent): leaf
                    for path, leaf in leaves.items()
                    if path.startswith(parent)
                }
                variables = {"params": unflatten(params)}
                keys_values, gates = self._prefix(stack, config).apply(variables)
                folded[f"{parent}keys_values"] = np.asarray(keys_values, np.float32)
                if gates is not None:
                    folded[f"{parent}gates"] = params["gates"]
        return folded

    def _prefix(self, stack: str, config: Config, name: str | None = None) -> "Prefix":
        shape = config.stack(stack)
        return Prefix(
            (shape.layers, 2, self.length, shape.key_heads, shape.head_dim),
            shape.heads,
            shape.width,
            self.hidden,
            self.gated,
            name=name,
        )


class Prefix(nn.Module):
    """Keys and values [layers, 2, P, key heads, head_dim] of one kind of block, and any gates."""

    shape: tuple[int, ...]
    heads: int
    width: int
    hidden: int
    gated: bool

    @nn.compact
    def __call__(
        self,
    ) -> tuple[
        Float[ArrayLike, "layers 2 prefix key_heads head_dim"],
        Float[ArrayLike, "layers heads"] | None,
    ]:
        layers, _, length, key_heads, head_dim = self.shape
        axes = (None, None, "prompt", "heads", "kv")
        if self.hidden:
            x = self.param("inputs", nn.initializers.normal(1.0), (length, self.width), jnp.float32)
            x = nn.tanh(nn.Dense(self.hidden, name="hidden")(x))
            x = nn.Dense(layers * 2 * key_heads * head_dim, name="out")(x)
            keys_values = jnp.moveaxis(x.reshape(length, layers, 2, key_heads, head_dim), 0, 2)
        else:
            normal = nn.initializers.normal(0.1)
            keys_values = partitioned_param(self, "keys_values", normal, axes, self.shape)
        if not self.gated:
            return keys_values, None
        zeros = nn.initializers.zeros
        gates = partitioned_param(self, "gates", zeros, (None, "heads"), (layers, self.heads))
        return keys_values, gates
