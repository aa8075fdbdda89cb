"""The places where a tuning method may act on the backbone.

This is all that the backbones know of tuning. The functions here are identities; a method
(`prompt_tuning.methods`) overrides those it acts at. They are called inside the backbone's compact
methods, so a linen submodule created in a site becomes a child of the calling module: a module
named `prompt` created in `embedded` has its parameters under `encoder/prompt/`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.transformer.config import Config

Attend = Callable[[Array, Array, Array, Array | None], Array]
# What `Sites.embedded` returns, for a length with the added positions.
Embedded = tuple[
    Float[Array, "batch longer embed"],
    Int[Array, "batch longer"],
    Int[Array, "batch longer"] | None,
]
BLOCKS = {
    "encoder": ("attention", "mlp"),
    "decoder": ("self_attention", "encoder_decoder_attention", "mlp"),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A block of a layer, by T5X's names.

    Attributes:
      stack: "encoder" or "decoder".
      layer: index of the layer, from 0; a traced array where layers are scanned
        (`Config.scan_layers`).
      block: one of `BLOCKS[stack]`; "" for the layer as a whole.
    """

    stack: str
    layer: int | Array
    block: str = ""


@dataclasses.dataclass(frozen=True)
class Sites:
    """Identities at every site: the plain backbone."""

    @property
    def decoder_positions(self) -> int:
        """Number of positions that `embedded` puts in front of the decoder's input."""
        return 0

    def task_index(self, task: str) -> int | None:
        """A task's number in `embedded`'s `tasks`; None if the sites act alike on all tasks.

        Raises:
          ValueError: if a method that tells tasks apart was not trained on this one.
        """
        return None

    def penalty(self, leaves: Mapping[str, Any]) -> Array | float:
        """A term added to the loss, computed from the leaves of the whole model, by path."""
        return 0.0

    def shared(self, stack: str, config: Config) -> Any:
        """Makes what the stack's `attention` sites share; called once, inside the stack."""
        return None

    def embedded(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        stack: str,
        tasks: Int[Array, " batch"] | None = None,
    ) -> Embedded:
        """Acts on a stack's embedded input, before its dropout.

        Cached decoding calls it for the first token only.

        Args:
          x: [B, T, D] embedded tokens; what is added is scaled with them (`Stack.embedding_scale`).
          segments: [B, T] int32, 0 at padding; 1 at real tokens, or 1, 2, ... for the examples
            packed into a row.
          positions: [B, T] int32, positions within each example of a packed batch; None if the
            batch is not packed.
          stack: "encoder" or "decoder".
          tasks: [B] int32, each example's task; None in the decoder, and if the batch has none.

        Returns:
          The first three arguments for T' positions, which attention and relative positions run
          over. Positions added to the decoder come first; their outputs are dropped.
        """
        return x, segments, positions

    def layer_input(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        place: Place,
    ) -> Float[Array, "batch length embed"]:
        """Acts on the input [B, T', D] of an encoder layer; the other arrays are `embedded`'s."""
        return x

    def linear(
        self,
        call: Callable[[Array], Array],
        x: Float[Array, "*batch inputs"],
        place: Place,
        projection: str,
    ) -> Float[Array, "*batch outputs"]:
        """Acts around a projection, x [..., in] to [..., out].

        Args:
          call: the projection, a function of x.
          x: input of the projection, [..., in].
          place: layer and block.
          projection: its name, "query", "key", "value", "out"; "wi" or "wi_0", "wi_1"; "wo".
        """
        return call(x)

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
        """Acts around attention; keys and values added here are not cached.

        Args:
          call: attention itself, (query, key, value, bias) to [B, Q, heads, head_dim].
          query: [B, Q, heads, head_dim].
          key, value: [B, K, key heads, head_dim]; rotary positions are in query and key already.
          bias: broadcastable to [B, heads, Q, K], float32, with the mask included.
          place: layer and block.
          shared: result of `shared` for the stack.
        """
        return call(query, key, value, bias)

    def sublayer(
        self, y: Float[Array, "batch length embed"], place: Place
    ) -> Float[Array, "batch length embed"]:
        """Acts on a block's output [B, T', D], normed if the family does so, before its dropout
        and the residual sum.
        """
        return y

    def logits(
        self,
        logits: Float[Array, "batch length vocab"],
        hidden: Float[Array, "batch length embed"],
    ) -> Float[Array, "batch length vocab"]:
        """Acts on logits [B, L, V] float32; `hidden` [B, L, D] are the normed states below."""
        return logits
