"""Layers of all families, with T5X's parameter names, shapes and logical axes.

Numerics follow Flaxformer: parameters are float32 and are cast to the activation dtype where they
are used; norms, softmax and logits are float32; -1e10 is added to masked logits.
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

from prompt_tuning.transformer import int8, narrow
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.sites import Place, Sites

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
    x: Float[Array, "*batch inputs"],
    kernel: Any,
    dtype: jnp.dtype,
    products: str = "float32",
    transposed: bool = False,
) -> Float[Array, "*batch outputs"]:
    """Multiplies x [..., in] by a kernel [in, out], which may be int8; the result is in `dtype`.

    If `transposed`, the kernel is [out, in].

    If `products` rounds (see `Config.products`), operands other than float16 are cast to bfloat16
    and sums are float32. Otherwise operands are cast to `dtype`, but not up if both have the same
    narrower dtype: products of bfloat16 are exact in float32. Accelerators accumulate in float32
    whatever the result's dtype; asking for float32 sums would make the backward pass's operands
    float32 as well.
    """
    rounds = dtype != jnp.float16 and narrow.rounds(products)
    if rounds and not int8.is_int8(kernel):
        return narrow.matmul(x, kernel, transposed).astype(dtype)
    kernel = kernel.T if transposed else kernel
    if int8.is_int8(kernel):
        x = x.astype(jnp.bfloat16) if rounds else x if _holds(dtype, x.dtype) else x.astype(dtype)
        return int8.matmul(x, kernel, x.dtype).astype(dtype)
    if x.dtype != kernel.dtype or not _holds(dtype, x.dtype):
        x, kernel = x.astype(dtype), kernel.astype(dtype)
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contract, preferred_element_type=dtype)


def _holds(dtype: jnp.dtype, other: jnp.dtype) -> bool:
    """Whether every value of the float type `other` is one of `dtype`."""
    return other == dtype or jnp.finfo(other).bits < jnp.finfo(dtype).bits


class Embed(nn.Module):
    """Token embedding [V, D] of a stack, looked up by a gather; also an output layer tied to it."""

    config: Config
    stack: str

    def setup(self) -> None:
        stack = self.config.stack(self.stack)
        init = nn.initializers.normal(1.0 / (stack.embedding_scale or 1.0))
        shape = (self.config.vocab_size, stack.width)
        self.embedding = partitioned_param(self, "embedding", init, ("vocab", "embed"), shape)

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch embed"]:
        # fsdp divides rows; the lookup needs whole ones.
        whole = functools.partial(
            nn.with_logical_constraint, logical_axis_resources=("vocab", None)
        )
        table = jax.tree.map(whole, self.embedding)
        return int8.rows(table, tokens).astype(self.config.dtype)

    def attend(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch vocab"]:
        """Logits [..., V] from x [..., D]: x times the transposed table."""
        logits_dtype, products = jnp.dtype("float32"), self.config.products
        return matmul(x, self.embedding, logits_dtype, products, transposed=True)


def most_likely(logits: Float[Array, "*batch vocab"]) -> Int[Array, "*batch"]:
    """Returns the ids [...] int32 of the largest of logits [..., V], the first of equal ones.

    XLA's argmax is a loop over single numbers on CPUs; these two reductions take an eighth.
    """
    last = logits.shape[-1] - 1
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(largest, ids, last), axis=-1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * (offset + scale), statistics in float32; no mean, no bias."""

    dtype: jnp.dtype
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
        init = nn.initializers.constant(1.0 - self.offset)
        scale = partitioned_param(self, "scale", init, ("embed",), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        if self.offset:
            scale = self.offset + scale
        return (x * over_last(scale, x)).astype(self.dtype)


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
    """Multi-head attention; `Stack.heads / Stack.key_heads` heads share keys and values."""

    config: Config
    sites: Sites
    place: Place

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries embed"],
        keys_values: Float[Array, "rows keys source_embed"]
        | tuple[Float[Array, "rows heads keys head_dim"], Float[Array, "rows heads keys head_dim"]],
        bias: Float[Array, "#rows #query_heads shared_queries attended"] | None,
        *,
        rotate: Callable[[Array], Array] | None = None,
        shared: Any = None,
        cache: tuple[Array, Array] | None = None,
        index: Int[Array, ""] | int = 0,
        enable_dropout: bool = False,
    ) -> tuple[Float[Array, "batch queries embed"], tuple[Array, Array]]:
        """Attends from x to keys and values.

        Args:
          x: [B, Q, D], input of the queries.
          keys_values: [B, K, D], input of keys and values, or the projected pair itself, each
            [B, key heads, K, head_dim]. If it has B / n rows, n successive rows of x attend to
            each.
          bias: broadcastable to [B, heads, Q, K], float32: relative positions plus mask.
          rotate: rotary positions, of queries and keys [B, Q, heads, head_dim]; None for none.
          shared: result of `Sites.shared` for the stack.
          cache: pair [B, key heads, L, head_dim] into which the new keys and values are written at
            `index`, before attending over all L.
          index: scalar int32, position of x in the cache.
          enable_dropout: whether attention weights are dropped.

        Returns:
          The output [B, Q, D], and the keys and values attended to, each [B, key heads, K,
          head_dim], the layout in which a decoding step multiplies them.
        """
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        stack = cfg.stack(self.place.stack)

        def linear(
            name: str, axes: tuple[str, str], features: int, y: Array, scale: float = 1.0
        ) -> Array:
            dense = Dense(features, axes, dtype, cfg.products, scale, name=name)
            return self.sites.linear(dense, y, self.place, name)

        def project(name: str, y: Array, heads: int, scale: float = 1.0) -> Array:
            y = linear(name, ("embed", "joined_kv"), heads * stack.head_dim, y, scale)
            return y.reshape(*y.shape[:-1], heads, stack.head_dim)

        def attend(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
            if cfg.attention != "einsum":
                return _fused(query, key, value, bias, cfg.attention)
            # One query uses each key once: rounding them would take longer than their product.
            rounds = query.shape[1] > 1 and dtype != jnp.float16 and narrow.rounds(cfg.products)
            multiply = narrow.per_head if rounds else _per_head
            # Heads before positions, the layout of a cache, which a decoding step need not copy.
            query, key, value = map(_heads_swapped, (query, key, value))
            shape = query.shape[:3]
            # Queries of heads that share a key become further queries of one head.
            query = query.reshape(*key.shape[:2], -1, stack.head_dim)
            logits = multiply(query, key, transposed=True).reshape(*shape, key.shape[2])
            if stack.query_scale is not None:
                logits = logits * stack.query_scale
            if stack.attention_cap is not None:
                logits = capped(logits, stack.attention_cap)
            if bias is not None:
                logits = logits + bias
            weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
            weights = dropout(weights, cfg.dropout_rate, self, enable_dropout)
            weights = weights.reshape(*key.shape[:2], -1, key.shape[2])
            y = multiply(weights, value, transposed=False).reshape(*shape, stack.head_dim)
            return _heads_swapped(y.astype(dtype))

        # T5 has 1/sqrt(head_dim) in the query's initialiser.
        initial = stack.head_dim**-0.5 if stack.query_scale is None else 1.0
        query = project("query", x, stack.heads, initial)
        if isinstance(keys_values, tuple):
            key, value = map(_heads_swapped, keys_values)
        else:
            key = project("key", keys_values, stack.key_heads)
            value = project("value", keys_values, stack.key_heads)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
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
        y = y.reshape(*x.shape[:-1], stack.heads * stack.head_dim)
        y = linear("out", ("joined_kv", "embed"), x.shape[-1], y)
        return y, (_heads_swapped(key), _heads_swapped(value))


def capped(logits: Float[Array, "*shape"], bound: float) -> Float[Array, "*shape"]:
    """Bounds logits smoothly: bound tanh(logits / bound)."""
    return bound * jnp.tanh(logits / bound)


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


def _per_head(x: Array, y: Array, *, transposed: bool) -> Array:
    """Products with keys (`transposed`), in float32, or values; see `narrow.per_head`."""
    contract = (((3,), (3 if transposed else 2,)), ((0, 1), (0, 1)))
    dtype = jnp.float32 if transposed else None
    return jax.lax.dot_general(x, y, contract, preferred_element_type=dtype)


class Mlp(nn.Module):
    """Feed-forward layer; two activations are two branches that are multiplied (gated)."""

    config: Config
    sites: Sites
    place: Place

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], *, enable_dropout: bool = False
    ) -> Float[Array, "batch length embed"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        stack, model = cfg.stack(self.place.stack), cfg.architecture
        hidden = jnp.ones((), dtype)
        for name, activation in zip(model.mlp_inputs, model.activations, strict=True):
            dense = Dense(stack.hidden, ("embed", "mlp"), dtype, cfg.products, name=name)
            branch = self.sites.linear(dense, x, self.place, name)
            hidden = hidden * _ACTIVATIONS[activation](branch)
        hidden = dropout(hidden, cfg.dropout_rate, self, enable_dropout)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        dense = Dense(stack.width, ("mlp", "embed"), dtype, cfg.products, name="wo")
        return self.sites.linear(dense, hidden, self.place, "wo")
