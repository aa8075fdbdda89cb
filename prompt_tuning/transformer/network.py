"""The encoder-decoder of all families: `encode`, `decode` (teacher-forced), and `decode_step`
(cached).
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from prompt_tuning.transformer.blocks import (
    Attended,
    DecoderLayer,
    EncoderLayer,
    KeysValues,
    normed,
    remat,
    scan,
    stack,
)
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.layers import (
    ArrayLike,
    Dense,
    Embed,
    attention_bias,
    capped,
    dropout,
    same_segment,
)
from prompt_tuning.transformer.sites import Place, Sites

# Makes what self-attention needs to know of positions, called inside the stack's compact method.
# Arguments: the configuration; the stack; positions of queries [B, Q] and keys [B, K]; which keys
# each query may see [B, 1, Q, K].
Positions = Callable[[Any, str, Array, Array, Array], Attended]


class Encoded(flax.struct.PyTreeNode):
    """The encoder's output.

    Attributes:
      states: [B, T', D]; T' includes positions that a method added.
      segments: [B, T'] int32, 0 at padding.
    """

    states: Float[Array, "batch inputs embed"]
    segments: Int[Array, "batch inputs"]


class Cache(flax.struct.PyTreeNode):
    """The state that cached decoding carries from step to step.

    Attributes:
      encoded: the encoder's output.
      index: scalar int32, position of the next token.
      keys_values: self-attention keys and values of each decoder layer, [B, key heads, L,
        head_dim].
      cross: cross-attention keys and values of each layer, [B, key heads, T', head_dim]; None
        before the first step, which computes them.
    """

    encoded: Encoded
    index: Int[Array, ""]
    keys_values: tuple[KeysValues, ...]
    cross: tuple[KeysValues, ...] | None

    def rows(self, index: Int[Array, " rows"]) -> "Cache":
        """Returns the cache whose row i continues row `index[i]`.

        Arrays from the encoder are not copied: each of their rows serves n successive rows.
        """
        taken = jax.tree.map(lambda x: jnp.take(x, index, axis=0), self.keys_values)
        return self.replace(keys_values=taken)


class Encoder(nn.Module):
    config: Config
    sites: Sites
    positions: Positions

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        tasks: Int[Array, " batch"] | None,
        *,
        enable_dropout: bool,
    ) -> Encoded:
        """Encodes embedded tokens x [B, T, D]; `Sites.embedded` documents the other arrays."""
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        x, segments, positions = self.sites.embedded(x, segments, positions, "encoder", tasks)
        x = dropout(_scaled(x, cfg, "encoder"), cfg.dropout_rate, self, enable_dropout)
        order = jnp.arange(x.shape[1])[None] if positions is None else positions
        visible = same_segment(segments, segments)
        attended = self.positions(cfg, "encoder", order, order, visible)
        real = (segments > 0)[..., None].astype(dtype)
        shared, count = self.sites.shared("encoder", cfg), cfg.stack("encoder").layers
        layer = remat(EncoderLayer, cfg)
        if cfg.scan_layers:
            scanned = scan(layer, count, layers=1, shared=3)(
                cfg, self.sites, enable_dropout, name="layers"
            )
            x, _ = scanned(x, jnp.arange(count), attended, real, shared)
        else:
            for i in range(count):
                x = self.sites.layer_input(x, segments, positions, Place("encoder", i))
                block = layer(cfg, self.sites, enable_dropout, i, name=f"layers_{i}")
                x, _ = block(x, None, attended, real, shared)
        x = normed(self, "encoder_norm", x) * real
        return Encoded(dropout(x, cfg.dropout_rate, self, enable_dropout), segments)


class Decoder(nn.Module):
    config: Config
    sites: Sites
    positions: Positions

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        encoded: Encoded,
        real_input: Bool[Array, "batch length"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        *,
        tied_logits: Callable[[Array], Array],
        cache: Cache | None = None,
        enable_dropout: bool = False,
    ) -> tuple[Float[Array, "batch length vocab"], Cache | None]:
        """Runs the decoder over embedded tokens.

        Args:
          x: [B, L, D] embedded decoder input; with a cache, L = 1.
          encoded: the encoder's output, of B rows, or of B / n rows that n successive rows of x
            share.
          real_input: [B, L] bool, where the decoder input is real; outputs elsewhere are zero.
          segments: [B, L] int32, segments of the targets: 0 at padding, else as the encoder's.
          positions: [B, L] int32, positions within each example of a packed batch.
          tied_logits: output layer of a model that ties it to the embedding.
          cache: state of cached decoding; None for a causal mask over all of x.
          enable_dropout: whether dropout is applied.

        Returns:
          Logits [B, L, V] float32, and the cache after this step.
        """
        cfg, dtype, length = self.config, jnp.dtype(self.config.dtype), x.shape[1]
        if cache is None or cache.cross is None:
            x, segments, positions = self.sites.embedded(x, segments, positions, "decoder")
            added = x.shape[1] - length
            real_input = jnp.pad(real_input, ((0, 0), (added, 0)), constant_values=True)
        x = dropout(_scaled(x, cfg, "decoder"), cfg.dropout_rate, self, enable_dropout)
        if cache is None:
            order = jnp.arange(x.shape[1])[None]
            queries = keys = order if positions is None else positions
            causal = (order[:, None, :] <= order[:, :, None])[:, None]
            visible = causal & same_segment(segments, segments)
        else:
            keys = jnp.arange(cache.keys_values[0][0].shape[2])[None]
            queries = cache.index + jnp.arange(x.shape[1])[None]
            visible = (keys[:, None, :] <= queries[:, :, None])[:, None]
        attended = self.positions(cfg, "decoder", queries, keys, visible)
        shared_rows = segments.reshape(encoded.segments.shape[0], -1)
        cross_bias = attention_bias(same_segment(shared_rows, encoded.segments))
        real = real_input[..., None].astype(dtype)
        x, cache = self._layers(
            x, cache, encoded.states, attended, cross_bias, real, enable_dropout
        )
        x = (normed(self, "decoder_norm", x) * real)[:, -length:]
        x = dropout(x, cfg.dropout_rate, self, enable_dropout)
        if cfg.architecture.tied_logits:
            logits = tied_logits(x)
        else:
            dense = Dense(
                cfg.vocab_size,
                ("embed", "vocab"),
                jnp.dtype("float32"),
                cfg.products,
                name="logits_dense",
            )
            logits = nn.with_logical_constraint(dense(x), ("batch", "length", "vocab"))
        if (bound := cfg.architecture.logit_cap) is not None:
            logits = capped(logits, bound)
        return self.sites.logits(logits, x), cache

    def _layers(
        self,
        x: Array,
        cache: Cache | None,
        encoded: Array,
        attended: Attended,
        cross_bias: Array,
        real: Array,
        enable_dropout: bool,
    ) -> tuple[Array, Cache | None]:
        cfg, count = self.config, self.config.stack("decoder").layers
        cached = cache.keys_values if cache is not None else (None,) * count
        crosses = (cache is not None and cache.cross) or (None,) * count
        index = cache.index if cache is not None else 0
        rest = encoded, attended, cross_bias, real, self.sites.shared("decoder", cfg), index
        layer = remat(DecoderLayer, cfg)
        if cfg.scan_layers:
            scanned = scan(layer, count, layers=3, shared=6)(
                cfg, self.sites, enable_dropout, name="layers"
            )
            # This copies the cache twice per decoding step: scanned layers are for training.
            x, stacked = scanned(x, jnp.arange(count), stack(cached), stack(crosses), *rest)
            after = [jax.tree.map(operator.itemgetter(i), stacked) for i in range(count)]
        else:
            after = []
            for i in range(count):
                block = layer(cfg, self.sites, enable_dropout, i, name=f"layers_{i}")
                x, caches = block(x, None, cached[i], crosses[i], *rest)
                after.append(caches)
        if cache is not None:
            keys_values, crosses = zip(*after, strict=True)
            cache = cache.replace(
                index=cache.index + x.shape[1], keys_values=keys_values, cross=crosses
            )
        return x, cache


def _scaled(x: Array, config: Config, stack: str) -> Array:
    """Embedded input in the activation dtype, times the family's factor, rounded to that dtype."""
    scale = config.stack(stack).embedding_scale
    x = x.astype(config.dtype)
    return x if scale is None else x * jnp.asarray(scale, x.dtype)


class EncoderDecoder(nn.Module):
    """Base of a family's model, with a tuning method acting at its sites.

    `Model(config)` is the plain backbone. `Model(config, method)` adds the method's parameters;
    every backbone parameter keeps its path. A family overrides `positions`, and what else differs.

    Attributes:
      config: shape and numerics.
      sites: tuning method; the default acts nowhere.
    """

    config: Any
    sites: Sites = Sites()

    @staticmethod
    def positions(config: Any, stack: str, queries: Array, keys: Array, visible: Array) -> Attended:
        """See `Positions`."""
        raise NotImplementedError

    def setup(self) -> None:
        self.token_embedder = Embed(self.config, "encoder")
        self.encoder = Encoder(self.config, self.sites, self.positions)
        self.decoder = Decoder(self.config, self.sites, self.positions)

    @property
    def decoder_table(self) -> Embed:
        """The table of the decoder's tokens, and of tied logits."""
        return self.token_embedder

    def tied_logits(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
        """The output layer of a model that ties it to the decoder's embedding."""
        return self.decoder_table.attend(x)

    def encode(
        self,
        encoder_input_tokens: Int[ArrayLike, "batch inputs"],
        encoder_segment_ids: Int[ArrayLike, "batch inputs"] | None = None,
        encoder_positions: Int[ArrayLike, "batch inputs"] | None = None,
        tasks: Int[ArrayLike, " batch"] | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Encoded:
        """Encodes tokens [B, T] int32, 0 at padding; `__call__` documents the other arrays."""
        tokens, segments, positions, rows = _arrays(
            encoder_input_tokens, encoder_segment_ids, encoder_positions, tasks
        )
        if segments is None:
            segments = (tokens > 0).astype(jnp.int32)
        x = self.token_embedder(tokens)
        return self.encoder(x, segments, positions, rows, enable_dropout=enable_dropout)

    def decode(
        self,
        encoded: Encoded,
        decoder_input_tokens: Int[ArrayLike, "batch targets"],
        decoder_target_tokens: Int[ArrayLike, "batch targets"],
        decoder_segment_ids: Int[ArrayLike, "batch targets"] | None = None,
        decoder_positions: Int[ArrayLike, "batch targets"] | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Float[Array, "batch targets vocab"]:
        """Teacher-forced logits [B, L, V] float32; `__call__` documents the arguments."""
        tokens, targets, segments, positions = _arrays(
            decoder_input_tokens, decoder_target_tokens, decoder_segment_ids, decoder_positions
        )
        if segments is None:
            segments = (targets > 0).astype(jnp.int32)
        first = jnp.arange(tokens.shape[1])[None] == 0
        if positions is not None:
            first = (positions == 0) & (segments > 0)
        x = self.decoder_table(self._started(tokens, first))
        logits, _ = self.decoder(
            x,
            encoded,
            (tokens > 0) | first,
            segments,
            positions,
            tied_logits=self.tied_logits,
            enable_dropout=enable_dropout,
        )
        return logits

    def init_cache(self, encoded: Encoded, length: int) -> Cache:
        """Makes an empty cache for decoding up to `length` tokens."""
        stack, length = self.config.stack("decoder"), length + self.sites.decoder_positions
        shape = (encoded.states.shape[0], stack.key_heads, length, stack.head_dim)
        empty = jnp.zeros(shape, self.config.dtype)
        layers = tuple((empty, empty) for _ in range(stack.layers))
        return Cache(encoded, jnp.zeros((), jnp.int32), layers, None)

    def decode_step(
        self, tokens: Int[ArrayLike, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """Takes one token per row, [B] int32, to logits [B, V] float32 of the next token."""
        segments = jnp.ones((tokens.shape[0], 1), jnp.int32)
        x = self.decoder_table(self._started(jnp.asarray(tokens)[:, None], cache.index == 0))
        logits, cache_after = self.decoder(
            x,
            cache.encoded,
            segments > 0,
            segments,
            tied_logits=self.tied_logits,
            cache=cache,
        )
        return logits[:, 0], cast(Cache, cache_after)

    def _started(self, tokens: Array, first: Array) -> Array:
        """Writes the family's start token for a 0 where `first` is true."""
        start = self.config.architecture.start_token
        return jnp.where(first & (tokens == 0), start, tokens) if start else tokens

    def __call__(
        self,
        encoder_input_tokens: Int[ArrayLike, "batch inputs"],
        decoder_input_tokens: Int[ArrayLike, "batch targets"],
        decoder_target_tokens: Int[ArrayLike, "batch targets"],
        encoder_segment_ids: Int[ArrayLike, "batch inputs"] | None = None,
        decoder_segment_ids: Int[ArrayLike, "batch targets"] | None = None,
        encoder_positions: Int[ArrayLike, "batch inputs"] | None = None,
        decoder_positions: Int[ArrayLike, "batch targets"] | None = None,
        tasks: Int[ArrayLike, " batch"] | None = None,
        *,
        enable_dropout: bool = False,
    ) -> Float[Array, "batch targets vocab"]:
        """Computes teacher-forced logits; the call signature is T5X's.

        Args:
          encoder_input_tokens: [B, T] int32, 0 is padding.
          decoder_input_tokens: [B, L] int32, the targets shifted right by one, 0 in front, which
            stands for the family's start token.
          decoder_target_tokens: [B, L] int32.
          encoder_segment_ids: [B, T] int32, for a packed batch: 1, 2, ... for the examples of a
            row, 0 at padding; None for one example per row.
          decoder_segment_ids: [B, L] int32, the same for the targets.
          encoder_positions: [B, T] int32, for a packed batch: positions within each example. Room
            for positions that a method adds, tokens 0, is at the front of each example.
          decoder_positions: [B, L] int32, the same for the targets.
          tasks: [B] int32, each example's task, for methods that tell tasks apart.
          enable_dropout: whether dropout is applied; it needs `rngs={"dropout": key}`.

        Returns:
          Logits [B, L, V] float32.
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


def _arrays(*values: ArrayLike | None) -> Any:
    return tuple(None if value is None else jnp.asarray(value) for value in values)
