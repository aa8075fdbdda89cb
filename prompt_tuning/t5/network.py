"""The T5 encoder-decoder: encode, decode (teacher forced), decode_step (cached)."""

import functools
import operator
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from prompt_tuning.t5.blocks import DecoderLayer, EncoderLayer, KeysValues, remat, scan, stack
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.layers import (
    Dense,
    Embed,
    RelativePositionBias,
    RMSNorm,
    attention_bias,
    dropout,
    same_segment,
)
from prompt_tuning.t5.sites import Place, Sites

EMBEDDING = "token_embedder/embedding"  # path of the table [V, D]


class Encoded(flax.struct.PyTreeNode):
    """The encoder's output: states [B, T', D] and segments [B, T'] int32, 0 at padding.

    T' counts positions that a method added.
    """

    states: Array
    segments: Array


class Cache(flax.struct.PyTreeNode):
    """What cached decoding carries from step to step.

    Attributes:
      encoded: the encoder's output.
      index: scalar int32, the position that the next token takes.
      keys_values: a pair [B, heads, L, head_dim] for each decoder layer's self-attention.
      cross: a pair [B, heads, T', head_dim] for each layer; None before the first step, which
        computes them.
    """

    encoded: Encoded
    index: Array
    keys_values: tuple[KeysValues, ...]
    cross: tuple[KeysValues, ...] | None

    def rows(self, index: Array) -> "Cache":
        """The cache whose row i goes on from row `index[i]`.

        What comes from the encoder is not copied: n times its rows use it, n after each other.
        """
        taken = jax.tree.map(lambda x: jnp.take(x, index, axis=0), self.keys_values)
        return self.replace(keys_values=taken)


class Encoder(nn.Module):
    config: T5Config
    sites: Sites

    @nn.compact
    def __call__(
        self,
        x: Array,
        segments: Array,
        positions: Array | None,
        tasks: Array | None,
        *,
        enable_dropout: bool,
    ) -> Encoded:
        """x [B, T, D] embedded tokens; the other arrays as `Sites.embedded` has them."""
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        x, segments, positions = self.sites.embedded(x, segments, positions, "encoder", tasks)
        x = dropout(x.astype(dtype), cfg.dropout_rate, self, enable_dropout)
        order = jnp.arange(x.shape[1]) if positions is None else positions
        relative = RelativePositionBias(cfg, bidirectional=True, name="relpos_bias")
        bias = relative(order, order) + attention_bias(same_segment(segments, segments))
        real = (segments > 0)[..., None].astype(dtype)
        shared, count = self.sites.shared("encoder", cfg), cfg.num_encoder_layers
        layer = remat(EncoderLayer, cfg)
        if cfg.scan_layers:
            scanned = scan(layer, count, layers=1, shared=3)(
                cfg, self.sites, enable_dropout, name="layers"
            )
            x, _ = scanned(x, jnp.arange(count), bias, real, shared)
        else:
            for i in range(count):
                x = self.sites.layer_input(x, segments, positions, Place("encoder", i))
                one = layer(cfg, self.sites, enable_dropout, i, name=f"layers_{i}")
                x, _ = one(x, None, bias, real, shared)
        x = RMSNorm(dtype, name="encoder_norm")(x) * real
        return Encoded(dropout(x, cfg.dropout_rate, self, enable_dropout), segments)


class Decoder(nn.Module):
    config: T5Config
    sites: Sites

    @nn.compact
    def __call__(
        self,
        x: Array,
        encoded: Encoded,
        real_input: Array,
        segments: Array,
        positions: Array | None = None,
        *,
        tied_logits: Callable[[Array], Array],
        cache: Cache | None = None,
        enable_dropout: bool = False,
    ) -> tuple[Array, Cache | None]:
        """Runs the decoder over embedded tokens.

        Args:
          x: [B, L, D] embedded decoder input; with a cache, L = 1.
          encoded: the encoder's output, of B rows, or of B / n that n rows of x share in turn.
          real_input: [B, L] bool, where the decoder input is real; outputs elsewhere are zero.
          segments: [B, L] int32, of the targets: 0 at padding, else as the encoder's.
          positions: [B, L] int32 within each example of a packed batch.
          tied_logits: the output layer, where it is tied to the embedding.
          cache: state of cached decoding; without it a causal mask is used.
          enable_dropout: apply dropout.

        Returns:
          Logits [B, L, V] float32, and the cache after this step.
        """
        cfg, dtype, length = self.config, jnp.dtype(self.config.dtype), x.shape[1]
        if cache is None or cache.cross is None:
            x, segments, positions = self.sites.embedded(x, segments, positions, "decoder")
            added = x.shape[1] - length
            real_input = jnp.pad(real_input, ((0, 0), (added, 0)), constant_values=True)
        x = dropout(x.astype(dtype), cfg.dropout_rate, self, enable_dropout)
        if cache is None:
            order = jnp.arange(x.shape[1])
            queries = keys = order if positions is None else positions
            visible = (order[None, :] <= order[:, None]) & same_segment(segments, segments)
        else:
            keys = jnp.arange(cache.keys_values[0][0].shape[2])
            queries = cache.index + jnp.arange(x.shape[1])
            visible = (keys[None, :] <= queries[:, None])[None, None]
        relative = RelativePositionBias(cfg, bidirectional=False, name="relpos_bias")
        self_bias = relative(queries, keys) + attention_bias(visible)
        shared_rows = segments.reshape(encoded.segments.shape[0], -1)
        cross_bias = attention_bias(same_segment(shared_rows, encoded.segments))
        real = real_input[..., None].astype(dtype)
        x, cache = self._layers(
            x, cache, encoded.states, self_bias, cross_bias, real, enable_dropout
        )
        x = (RMSNorm(dtype, name="decoder_norm")(x) * real)[:, -length:]
        x = dropout(x, cfg.dropout_rate, self, enable_dropout)
        if cfg.tied_logits:
            logits = tied_logits(x)
        else:
            dense = Dense(
                cfg.vocab_size, ("embed", "vocab"), jnp.dtype("float32"), name="logits_dense"
            )
            logits = nn.with_logical_constraint(dense(x), ("batch", "length", "vocab"))
        return self.sites.logits(logits, x), cache

    def _layers(
        self,
        x: Array,
        cache: Cache | None,
        encoded: Array,
        self_bias: Array,
        cross_bias: Array,
        real: Array,
        enable_dropout: bool,
    ) -> tuple[Array, Cache | None]:
        cfg, count = self.config, self.config.num_decoder_layers
        cached = cache.keys_values if cache is not None else (None,) * count
        crosses = (cache is not None and cache.cross) or (None,) * count
        index = cache.index if cache is not None else 0
        rest = encoded, self_bias, cross_bias, real, self.sites.shared("decoder", cfg), index
        layer = remat(DecoderLayer, cfg)
        if cfg.scan_layers:
            scanned = scan(layer, count, layers=3, shared=6)(
                cfg, self.sites, enable_dropout, name="layers"
            )
            # Decoding copies its cache twice a step here; what scans is made for training.
            of_layers = stack(cached), stack(crosses)
            x, found = scanned(x, jnp.arange(count), *of_layers, *rest)
            made = [jax.tree.map(operator.itemgetter(i), found) for i in range(count)]
        else:
            made = []
            for i in range(count):
                one = layer(cfg, self.sites, enable_dropout, i, name=f"layers_{i}")
                x, found = one(x, None, cached[i], crosses[i], *rest)
                made.append(found)
        if cache is not None:
            keys_values, crosses = zip(*made, strict=True)
            cache = cache.replace(
                index=cache.index + x.shape[1], keys_values=keys_values, cross=crosses
            )
        return x, cache


class T5(nn.Module):
    """T5 with a tuning method acting at its sites.

    `T5(config)` is the plain backbone; `T5(config, method)` adds the method's parameters and
    leaves the path of every backbone parameter as it is in T5X.
    """

    config: T5Config
    sites: Sites = Sites()

    def setup(self) -> None:
        self.token_embedder = Embed(self.config)
        self.encoder = Encoder(self.config, self.sites)
        self.decoder = Decoder(self.config, self.sites)

    def encode(
        self,
        encoder_input_tokens: Array,
        encoder_segment_ids: Array | None = None,
        encoder_positions: Array | None = None,
        tasks: Array | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Encoded:
        """Encodes tokens [B, T] int32; 0 is padding. The other arrays: see `__call__`."""
        segments = encoder_segment_ids
        if segments is None:
            segments = (encoder_input_tokens > 0).astype(jnp.int32)
        x = self.token_embedder(encoder_input_tokens)
        return self.encoder(x, segments, encoder_positions, tasks, enable_dropout=enable_dropout)

    def decode(
        self,
        encoded: Encoded,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        decoder_segment_ids: Array | None = None,
        decoder_positions: Array | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Array:
        """Teacher-forced logits [B, L, V] float32; arguments as of `__call__`."""
        segments, positions = decoder_segment_ids, decoder_positions
        if segments is None:
            segments = (decoder_target_tokens > 0).astype(jnp.int32)
        first = jnp.arange(decoder_input_tokens.shape[1]) == 0
        if positions is not None:
            first = (positions == 0) & (segments > 0)
        x = self.token_embedder(decoder_input_tokens)
        logits, _ = self.decoder(
            x,
            encoded,
            (decoder_input_tokens > 0) | first,
            segments,
            positions,
            tied_logits=self.token_embedder.attend,
            enable_dropout=enable_dropout,
        )
        return logits

    def init_cache(self, encoded: Encoded, length: int) -> Cache:
        """An empty cache for decoding up to `length` tokens."""
        cfg, length = self.config, length + self.sites.decoder_positions
        shape = (encoded.states.shape[0], cfg.num_heads, length, cfg.head_dim)
        empty = jnp.zeros(shape, cfg.dtype)
        layers = tuple((empty, empty) for _ in range(cfg.num_decoder_layers))
        return Cache(encoded, jnp.zeros((), jnp.int32), layers, None)

    def decode_step(self, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        """One token [B] int32 for each row to the next token's logits [B, V] float32."""
        segments = jnp.ones((tokens.shape[0], 1), jnp.int32)
        x = self.token_embedder(tokens[:, None])
        logits, after = self.decoder(
            x,
            cache.encoded,
            segments > 0,
            segments,
            tied_logits=self.token_embedder.attend,
            cache=cache,
        )
        return logits[:, 0], cast(Cache, after)

    def __call__(
        self,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        encoder_positions: Array | None = None,
        decoder_positions: Array | None = None,
        tasks: Array | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Array:
        """Teacher-forced logits; T5X's call signature.

        Args:
          encoder_input_tokens: [B, T] int32, 0 is padding.
          decoder_input_tokens: [B, L] int32, the targets shifted right by one, 0 in front.
          decoder_target_tokens: [B, L] int32.
          encoder_segment_ids: [B, T] int32 of a packed batch: 1, 2, ... for the examples of a row,
            0 at padding. None: one example a row.
          decoder_segment_ids: [B, L] int32, the same for the targets.
          encoder_positions: [B, T] int32 of a packed batch: positions within each example. A method
            that adds positions finds their places, tokens 0, at the front of each example.
          decoder_positions: [B, L] int32, the same for the targets.
          tasks: [B] int32, each example's task, for methods that tell tasks apart.
          enable_dropout: needs `rngs={"dropout": key}`.

        Returns:
          [B, L, V] float32.
        """
        encoded = self.encode(
            encoder_input_tokens,
            encoder_segment_ids,
            encoder_positions,
            tasks,
            enable_dropout=enable_dropout,
        )
        return self.decode(
            encoded,
            decoder_input_tokens,
            decoder_target_tokens,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout=enable_dropout,
        )


@functools.cache
def init_shapes(config: T5Config, sites: Sites = Sites()):
    """The parameter tree of `T5(config, sites)` as boxed shapes: nothing is allocated."""
    model = T5(config, sites)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens, tokens)
    return variables["params"]
