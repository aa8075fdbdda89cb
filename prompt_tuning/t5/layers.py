"""T5's layers, with T5X's parameter names, shapes and logical axes.

Numerics follow the original code (Flaxformer): parameters are float32 and are cast to the
activation dtype where they are used; norms, softmax and logits are float32; -1e10 is added to
masked logits.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from prompt_tuning.t5 import int8, narrow
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.sites import Place, Sites

NEG_INF = -1e10

ArrayLike = Array | np.ndarray  # parameters may be NumPy's where nothing is compiled
Axes = tuple[str | None, ...]
Shape = tuple[int, ...]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
}


def partitioned_param(
    module: nn.Module, name: str, init: nn.initializers.Initializer, axes: Axes, shape: Shape
) -> Any:
    """A float32 parameter with logical axis names, one per dimension; a QArray if it is int8."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)


def over_last(
    vector: Float[ArrayLike, " embed"], x: Float[Array, "*batch embed"]
) -> Float[Array, "*ones embed"]:
    """Reshapes a vector [D] so that it broadcasts over x [..., D]."""
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


def dropout(x: Array, rate: float, module: nn.Module, enabled: bool) -> Array:
    """Applies dropout with a mask shared along the length axis (-2), as in T5X."""
    if not enabled or rate == 0.0:
        return x
    shape = (*x.shape[:-2], 1, x.shape[-1])
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class Dense(nn.Module):
    """x @ kernel, no bias; kernel [in, out]."""

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype
    products: str
    scale: float = 1.0  # multiplies the initialiser's standard deviation

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "truncated_normal")
        shape = (x.shape[-1], self.features)
        kernel = partitioned_param(self, "kernel", init, self.axes, shape)
        return matmul(x, kernel, self.dtype, self.products)


def matmul(
    x: Float[Array, "*batch inputs"], kernel: Any, dtype: jnp.dtype, products: str = "float32"
) -> Float[Array, "*batch outputs"]:
    """Multiplies x [..., in] by a kernel [in, out], which may be int8; the result is in `dtype`.

    If `products` rounds (see `T5Config.products`), operands other than float16 are cast to bfloat16
    and sums are float32. Otherwise operands are cast to `dtype`, but not up if both have the same
    narrower dtype: products of bfloat16 are exact in float32. Accelerators accumulate in float32
    whatever the result's dtype; asking for float32 sums would make the backward pass's operands
    float32 as well.
    """
    rounds = dtype != jnp.float16 and narrow.rounds(products)
    if int8.is_int8(kernel):
        x = x.astype(jnp.bfloat16) if rounds else x if _holds(dtype, x.dtype) else x.astype(dtype)
        return int8.matmul(x, kernel, x.dtype).astype(dtype)
    if rounds:
        return narrow.matmul(x, kernel).astype(dtype)
    if x.dtype != kernel.dtype or not _holds(dtype, x.dtype):
        x, kernel = x.astype(dtype), kernel.astype(dtype)
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contract, preferred_element_type=dtype)


def _holds(dtype: jnp.dtype, other: jnp.dtype) -> bool:
    """Whether every value of the float type `other` is one of `dtype`."""
    return other == dtype or jnp.finfo(other).bits < jnp.finfo(dtype).bits


class Embed(nn.Module):
    """Token embedding [V, D], looked up by a gather; also the tied output layer of T5 v1.0."""

    config: T5Config

    def setup(self) -> None:
        init = nn.initializers.normal(1.0)
        shape = (self.config.vocab_size, self.config.d_model)
        self.embedding = partitioned_param(self, "embedding", init, ("vocab", "embed"), shape)

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch embed"]:
        # fsdp divides rows; the lookup needs whole ones.
        whole = functools.partial(
            nn.with_logical_constraint, logical_axis_resources=("vocab", None)
        )
        table = jax.tree.map(whole, self.embedding)
        return int8.rows(table, tokens).astype(self.config.dtype)

    def attend(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
        """Logits [..., V] from x [..., D]: x times the transposed table, over sqrt(D)."""
        logits = matmul(x, self.embedding.T, jnp.dtype("float32"), self.config.products)
        return logits / np.sqrt(self.config.d_model)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale, statistics in float32; no mean, no bias."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        ones = nn.initializers.ones
        scale = partitioned_param(self, "scale", ones, ("embed",), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return (x * over_last(scale, x)).astype(self.dtype)


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


def attention_bias(mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0 where `mask` is True, -1e10 elsewhere; float32."""
    return jnp.where(mask, 0.0, NEG_INF).astype(jnp.float32)


def same_segment(
    queries: Int[Array, "batch queries"], keys: Int[Array, "batch keys"]
) -> Bool[Array, "batch 1 queries keys"]:
    """Mask [B, 1, Q, K], True where both are real and of one example; segments [B, Q], [B, K]."""
    queries, keys = queries[:, None, :, None], keys[:, None, None, :]
    return (queries == keys) & (queries > 0)


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(head_dim), which is in the query's initialiser."""

    config: T5Config
    sites: Sites
    place: Place

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries embed"],
        keys_values: Float[Array, "rows keys embed"]
        | tuple[Float[Array, "rows heads keys head_dim"], Float[Array, "rows heads keys head_dim"]],
        bias: Float[Array, "#rows #heads shared_queries attended"] | None,
        *,
        shared: Any = None,
        cache: tuple[Array, Array] | None = None,
        index: Int[Array, ""] | int = 0,
        enable_dropout: bool = False,
    ) -> tuple[Float[Array, "batch queries embed"], tuple[Array, Array]]:
        """Attends from x to keys and values.

        Args:
          x: [B, Q, D], input of the queries.
          keys_values: [B, K, D], input of keys and values, or the projected pair itself, each
            [B, heads, K, head_dim]. If it has B / n rows, n successive rows of x attend to each.
          bias: broadcastable to [B, heads, Q, K], float32: relative positions plus mask.
          shared: result of `Sites.shared` for the stack.
          cache: pair [B, heads, L, head_dim] into which the new keys and values are written at
            `index`, before attending over all L.
          index: scalar int32, position of x in the cache.
          enable_dropout: whether attention weights are dropped.

        Returns:
          The output [B, Q, D], and the keys and values attended to, each [B, heads, K, head_dim],
          the layout in which a decoding step multiplies them.
        """
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        joined = cfg.num_heads * cfg.head_dim

        def linear(
            name: str, axes: tuple[str, str], features: int, y: Array, scale: float = 1.0
        ) -> Array:
            dense = Dense(features, axes, dtype, cfg.products, scale, name=name)
            return self.sites.linear(dense, y, self.place, name)

        def project(name: str, y: Array, scale: float = 1.0) -> Array:
            y = linear(name, ("embed", "joined_kv"), joined, y, scale)
            return y.reshape(*y.shape[:-1], cfg.num_heads, cfg.head_dim)

        def attend(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
            if cfg.attention != "einsum":
                return _fused(query, key, value, bias, cfg.attention)
            # One query uses each key once: rounding them would take longer than their product.
            rounds = query.shape[1] > 1 and dtype != jnp.float16 and narrow.rounds(cfg.products)
            if rounds:
                logits = narrow.attention_logits(query, key)
            else:
                logits = jnp.einsum(
                    "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
                )
            if bias is not None:
                logits = logits + bias
            weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
            weights = dropout(weights, cfg.dropout_rate, self, enable_dropout)
            if rounds:
                return narrow.attention_values(weights, value).astype(dtype)
            return jnp.einsum("bhqk,bkhd->bqhd", weights, value).astype(dtype)

        query = project("query", x, cfg.head_dim**-0.5)
        if isinstance(keys_values, tuple):
            key, value = map(_heads_swapped, keys_values)
        else:
            key, value = project("key", keys_values), project("value", keys_values)
        if cache is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
            new = map(_heads_swapped, (key, value))
            key, value = (
                _heads_swapped(write(old, added, index))
                for old, added in zip(cache, new, strict=True)
            )
        # Rows that share an encoder output (beams, labels) become further queries of one row.
        query = query.reshape(key.shape[0], -1, *query.shape[2:])
        y = self.sites.attention(attend, query, key, value, bias, self.place, shared)
        y = y.reshape(*x.shape[:-1], joined)
        y = linear("out", ("joined_kv", "embed"), x.shape[-1], y)
        return y, (_heads_swapped(key), _heads_swapped(value))


def _fused(
    query: Array, key: Array, value: Array, bias: Array | None, implementation: Any
) -> Array:
    """Attention by `jax.nn.dot_product_attention`, with a bias of the queries' dtype."""
    if implementation == "cudnn" and (backend := jax.default_backend()) != "gpu":
        raise ValueError(f"ATTENTION = 'cudnn': needs a GPU, not a {backend}; set 'einsum'")
    if bias is not None:
        bias = bias.astype(query.dtype)
    return jax.nn.dot_product_attention(
        query, key, value, bias, scale=1.0, implementation=implementation
    )


def _heads_swapped(x: Array) -> Array:
    """Swaps the length and heads axes: [B, L, heads, head_dim] to [B, heads, L, head_dim]."""
    return jnp.swapaxes(x, 1, 2)


class Mlp(nn.Module):
    """Feed-forward layer; two activations are two branches that are multiplied (gated)."""

    config: T5Config
    sites: Sites
    place: Place

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], *, enable_dropout: bool = False
    ) -> Float[Array, "batch length embed"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        hidden = jnp.ones((), dtype)
        for name, activation in zip(cfg.mlp_inputs, cfg.activations, strict=True):
            dense = Dense(cfg.d_ff, ("embed", "mlp"), dtype, cfg.products, name=name)
            branch = self.sites.linear(dense, x, self.place, name)
            hidden = hidden * _ACTIVATIONS[activation](branch)
        hidden = dropout(hidden, cfg.dropout_rate, self, enable_dropout)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        dense = Dense(cfg.d_model, ("mlp", "embed"), dtype, cfg.products, name="wo")
        return self.sites.linear(dense, hidden, self.place, "wo")
