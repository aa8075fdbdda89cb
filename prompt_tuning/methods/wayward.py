"""Wayward prompts (Khashabi et al., 2022): a prompt kept near a given text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from prompt_tuning.methods.base import Method
from prompt_tuning.methods.initializers import Text
from prompt_tuning.methods.prompt import PROMPT_PATH, InputPrompt
from prompt_tuning.transformer import int8
from prompt_tuning.transformer.paths import EMBEDDING


@dataclasses.dataclass(frozen=True)
class Wayward(InputPrompt):
    """Prompt tuning with weight * mean_p |prompt_p - embedding of token p|^2 added to the loss.

    The prompt starts as the text; vectors beyond the text are free.

    Attributes:
      text: text that the prompt stays near.
      weight: weight of the term; `LOSS_NORMALIZING_FACTOR` scales the rest of the loss, not it.
      token_ids: token ids of the text; () until the vocabulary is known.
    """

    text: str = ""
    weight: float = 1.0
    token_ids: Sequence[int] = ()

    only_in_training = Method.only_in_training | {"text", "weight", "token_ids"}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "token_ids", tuple(self.token_ids))
        if not self.text.strip():
            raise ValueError(
                "WAYWARD_TEXT is empty: give the text that the prompt should stay near"
            )

    def for_task(
        self,
        encode: Callable[[str], list[int]] | None,
        labels: Sequence[str],
        tasks: Sequence[str] = (),
    ) -> Method:
        if encode is None and self.token_ids:
            return self
        if encode is None:
            raise ValueError("Wayward: a vocabulary is needed to read WAYWARD_TEXT")
        ids = encode(self.text)[: self.length]
        return dataclasses.replace(self, token_ids=ids, initializer=Text(self.text))

    def exports(self, trained: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.prompt_file(trained)

    def penalty(self, leaves: Mapping[str, Any]) -> Array | float:
        if not self.token_ids:
            return 0.0
        target = int8.rows(leaves[EMBEDDING], jnp.asarray(self.token_ids))
        distance = leaves[PROMPT_PATH][: len(self.token_ids)] - target
        return self.weight * jnp.mean(jnp.sum(jnp.square(distance), axis=-1))
