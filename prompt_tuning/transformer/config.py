"""What the configurations of all families have: the shape of each stack, and the numerics."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from prompt_tuning.transformer.int8 import INT8
from prompt_tuning.transformer.narrow import PRODUCTS

DTYPES = ("float32", "bfloat16", "float16")
REMAT = ("none", "minimal", "full")
ATTENTION = ("einsum", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class Stack:
    """Shape of an encoder or a decoder.

    Attributes:
      layers: number of layers.
      width: width of the residual stream, D.
      heads: number of attention heads, H.
      key_heads: number of heads of keys and values, which divides `heads`.
      head_dim: width of a head; `heads * head_dim` need not equal `width`.
      hidden: width of the feed-forward layers.
      query_scale: factor of the attention logits; None for none: the queries' initialiser has
        1 / sqrt(head_dim) instead.
      attention_cap: bound c of the attention logits, c tanh(logits / c); None for none.
      embedding_scale: factor of the embedded input, prompts included; None for none.
    """

    layers: int
    width: int
    heads: int
    key_heads: int
    head_dim: int
    hidden: int
    query_scale: float | None = None
    attention_cap: float | None = None
    embedding_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "key_heads", "head_dim", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"Stack.{name} = {getattr(self, name)}: must be at least 1")
        if self.heads % self.key_heads:
            raise ValueError(
                f"Stack.key_heads = {self.key_heads}: must divide the number of heads, {self.heads}"
            )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the shared layers need to know of a family's model.

    Attributes:
      encoder, decoder: shapes of the stacks.
      activations: of the feed-forward layers; two of them are two branches that are multiplied.
      tied_logits: whether the output layer is the decoder's embedding table.
      start_token: the decoder's first input, for which data and decoding write 0.
      norm_offset: added to the scales of norms.
      post_norms: whether each block's output is normalised as well.
      logit_cap: bound c of the logits, c tanh(logits / c); None for none.
    """

    encoder: Stack
    decoder: Stack
    activations: tuple[str, ...]
    tied_logits: bool
    start_token: int = 0
    norm_offset: float = 0.0
    post_norms: bool = False
    logit_cap: float | None = None

    @property
    def mlp_inputs(self) -> tuple[str, ...]:
        """Names of the feed-forward layer's input projections, one per activation."""
        count = len(self.activations)
        return tuple(f"wi_{i}" for i in range(count)) if count > 1 else ("wi",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of a family's configuration, a frozen dataclass that adds the shape.

    Attributes:
      vocab_size: number of rows of each embedding table, V.
      dropout_rate: dropout probability, broadcast over the length axis as in T5X.
      dtype: dtype of activations; trained parameters and logits are float32.
      products: operands of products with weights: "bfloat16", rounded and summed in float32;
        "float32", as `dtype` says; or "auto", "bfloat16" on CPUs with instructions for it (see
        `transformer.narrow.rounds`).
      frozen_dtype: dtype of frozen matrices, "int8" included (`transformer.int8`); other frozen
        parameters are float32.
      scan_layers: whether one layer is compiled and looped over. The parameters of a stack's layers
        are then stacked, `encoder/layers/...` [layers, ...]; in files they keep their names.
      remat: what the backward pass recomputes (T5X's names): "none"; "full": all but each layer's
        input; "minimal": all but the products with weights.
      attention: "einsum", ours; or an implementation of `jax.nn.dot_product_attention`, "xla" or
        "cudnn" (fused, for GPUs and 16-bit `dtype`). Those two do not drop attention weights, so
        `dropout_rate` must be 0.
    """

    vocab_size: int
    dropout_rate: float = dataclasses.field(default=0.0, kw_only=True)
    dtype: str = dataclasses.field(default="float32", kw_only=True)
    products: str = dataclasses.field(default="auto", kw_only=True)
    frozen_dtype: str = dataclasses.field(default="float32", kw_only=True)
    scan_layers: bool = dataclasses.field(default=False, kw_only=True)
    remat: str = dataclasses.field(default="none", kw_only=True)
    attention: str = dataclasses.field(default="einsum", kw_only=True)

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(
                f"{type(self).__name__}.vocab_size = {self.vocab_size}: must be at least 1"
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"DROPOUT_RATE = {self.dropout_rate}: must be at least 0 and below 1")
        allowed_values = {
            "dtype": DTYPES,
            "products": PRODUCTS,
            "frozen_dtype": (*DTYPES, INT8),
            "remat": REMAT,
            "attention": ATTENTION,
        }
        macros = {"dtype": "ACTIVATION_DTYPE", "frozen_dtype": "BACKBONE_DTYPE"}
        for name, allowed in allowed_values.items():
            if (value := getattr(self, name)) not in allowed:
                macro = macros.get(name, name.upper())
                raise ValueError(f"{macro} = {value!r}: choose from {', '.join(allowed)}")
        if self.attention != "einsum" and self.dropout_rate:
            raise ValueError(
                f"ATTENTION = {self.attention!r}: does not drop attention weights, which "
                f"DROPOUT_RATE = {self.dropout_rate} needs; set DROPOUT_RATE = 0.0 or "
                "ATTENTION = 'einsum'"
            )

    @property
    def architecture(self) -> Architecture:
        """The model in the words of the shared layers; each family has its own."""
        raise NotImplementedError

    @property
    def of_model(self) -> dict[str, Any]:
        """What a model computes with its weights, as JSON values; numerics are left out."""
        numerics = {field.name for field in dataclasses.fields(Config)} - {"vocab_size"}
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in numerics}
        return json.loads(json.dumps(_flat(fields)))

    def stack(self, name: str) -> Stack:
        """The shape of the "encoder" or the "decoder"."""
        return getattr(self.architecture, name)

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of a layer's projections."""
        return ("query", "key", "value", "out", *self.architecture.mlp_inputs, "wo")


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by name, those of a stack as "encoder.NAME"."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": part for key, part in inner.items()} or {name: value}
    return flat
