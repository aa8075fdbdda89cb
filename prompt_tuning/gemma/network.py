"""T5Gemma: the encoder-decoder with rotary positions, and windows in some layers."""

import functools
from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from prompt_tuning.gemma.config import T5GemmaConfig
from prompt_tuning.transformer.blocks import Attended
from prompt_tuning.transformer.layers import Embed, attention_bias
from prompt_tuning.transformer.network import EncoderDecoder


class Rotated(Attended):
    """Masks of layers with and without a window, and the angles of rotary positions.

    Attributes:
      full, near: biases [B, 1, Q, K] without and with the window.
      cos, sin: [B, Q, 1, head_dim / 2], of the angles of the queries' positions.
      windowed: whether each layer has a window.
    """

    full: Float[Array, "#batch 1 queries keys"]
    near: Float[Array, "#batch 1 queries keys"]
    cos: Float[Array, "#batch queries 1 half"]
    sin: Float[Array, "#batch queries 1 half"]
    windowed: tuple[bool, ...] = flax.struct.field(pytree_node=False)

    def at(self, layer: int | Array) -> tuple[Array, Callable[[Array], Array]]:
        if isinstance(layer, int):
            bias = self.near if self.windowed[layer] else self.full
        else:
            bias = jnp.where(jnp.asarray(self.windowed)[layer], self.near, self.full)
        return bias, functools.partial(rotated, cos=self.cos, sin=self.sin)


class T5Gemma(EncoderDecoder):
    """T5Gemma; parameters have T5's paths, with two tables and a norm after each block."""

    config: T5GemmaConfig

    @staticmethod
    def positions(
        config: T5GemmaConfig,
        stack: str,
        queries: Int[Array, "#batch queries"],
        keys: Int[Array, "#batch keys"],
        visible: Bool[Array, "#batch 1 queries keys"],
    ) -> Attended:
        shape = config.encoder if stack == "encoder" else config.decoder
        back = (queries[:, :, None] - keys[:, None, :])[:, None]
        near = jnp.abs(back) <= shape.window if stack == "encoder" else back < shape.window
        cos, sin = angles(queries, shape.head_dim, shape.rope_base)
        return Rotated(
            attention_bias(visible),
            attention_bias(visible & near),
            cos[:, :, None],
            sin[:, :, None],
            tuple(shape.windowed or ()),
        )

    def setup(self) -> None:
        super().setup()
        self.decoder_token_embedder = Embed(self.config, "decoder")

    @property
    def decoder_table(self) -> Embed:
        return self.decoder_token_embedder


def angles(
    positions: Int[Array, "batch length"], head_dim: int, base: float
) -> tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]:
    """Cosine and sine of position / base^(2i / head_dim) for each pair i (Su et al., 2021)."""
    frequencies = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)[None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotated(
    x: Float[Array, "batch length heads head_dim"],
    cos: Float[Array, "#batch length 1 half"],
    sin: Float[Array, "#batch length 1 half"],
) -> Float[Array, "batch length heads head_dim"]:
    """Rotates the pairs (x_i, x_i+half) of each head by the angles, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
