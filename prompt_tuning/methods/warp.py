"""WARP (Hambardzumyan et al., 2021): an input prompt and trained verbalizer vectors."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from prompt_tuning.methods.base import Method
from prompt_tuning.methods.prompt import InputPrompt
from prompt_tuning.transformer.layers import partitioned_param


@dataclasses.dataclass(frozen=True)
class Warp(InputPrompt):
    """Prompt tuning plus a trained change of the output row of each label's first token.

    (P + K) D parameters for K labels; the change starts at zero. The prompt alone would not predict
    the same, so no prompt file is exported.

    Attributes:
      label_ids: ids of the labels' first tokens; () for the labels of the task.
    """

    label_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "label_ids", tuple(self.label_ids))

    def for_task(
        self,
        encode: Callable[[str], list[int]] | None,
        labels: Sequence[str],
        tasks: Sequence[str] = (),
    ) -> Method:
        if self.label_ids:
            return self
        if encode is None or not labels:
            raise ValueError(
                "Warp: the task has no label words; set CLASS_LABELS for files of your own, give "
                "initialize(..., encode=data.encode, labels=data.labels), or set Warp.label_ids"
            )
        ids = [token for label in labels for token in encode(label)[:1]]
        if len(set(ids)) < len(labels):
            raise ValueError(
                f"Warp: the labels {', '.join(labels)} must begin with different tokens"
            )
        return dataclasses.replace(self, label_ids=ids)

    def logits(
        self,
        logits: Float[Array, "batch length vocab"],
        hidden: Float[Array, "batch length embed"],
    ) -> Float[Array, "batch length vocab"]:
        if not self.label_ids:
            return logits
        change = Verbalizer(len(self.label_ids), name="verbalizer")(hidden)
        return logits.at[..., jnp.asarray(self.label_ids)].add(change)


class Verbalizer(nn.Module):
    """Scores [B, L, K] float32 of hidden states [B, L, D]; vectors [K, D] start at zero."""

    labels: int

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "batch length embed"]
    ) -> Float[Array, "batch length labels"]:
        shape, zeros = (self.labels, hidden.shape[-1]), nn.initializers.zeros
        vectors = partitioned_param(self, "vectors", zeros, ("prompt", "prompt_embed"), shape)
        return hidden.astype(jnp.float32) @ vectors.T
