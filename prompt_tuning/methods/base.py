"""The interface of a tuning method."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.sites import Sites


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a method may read when it initialises its leaves.

    Attributes:
      embedding: [V, D] token embeddings, which may be sharded or int8: take rows, not all of it.
      encode: function from text to token ids, without an end token; None without a vocabulary.
      labels: label words of the task; empty if it has none.
      fingerprint: function that computes the backbone's fingerprint (`checkpoint.fingerprint`);
        None if it is not available.
      decoder_embedding: [V, D'] the decoder's embeddings, in families where they are others.
      config: `Config.of_model` of the backbone; empty if it is not available.
    """

    embedding: Any
    encode: Callable[[str], list[int]] | None = None
    labels: tuple[str, ...] = ()
    fingerprint: Callable[[], str] | None = None
    decoder_embedding: Any = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def of_decoder(self) -> "Backbone":
        """The same with the decoder's embeddings as `embedding`."""
        if self.decoder_embedding is None:
            return self
        return dataclasses.replace(self, embedding=self.decoder_embedding)


@dataclasses.dataclass(frozen=True)
class Method(Sites):
    """A tuning method: its action at the backbone's sites, and the leaves it trains.

    Nothing outside a method's own file names the method: the trainer calls `trains`, and
    `prompt_tuning.model.params.ParamSplit` derives the rest by comparing shapes.

    Attributes:
      only_in_training: fields that do not matter once the leaves are trained.
    """

    only_in_training: ClassVar[frozenset[str]] = frozenset({"initializer"})

    @property
    def positions(self) -> int | None:
        """Number of positions that the method needs in front of each packed example; None if
        examples cannot be packed, because its positions are elsewhere.
        """
        return 0

    def check(self, config: Config) -> None:
        """Checks the settings against the backbone's shape.

        Raises:
          ValueError: if one does not fit; the message names it.
        """

    def for_task(
        self,
        encode: Callable[[str], list[int]] | None,
        labels: Sequence[str],
        tasks: Sequence[str] = (),
    ) -> "Method":
        """Returns the method with its task-dependent settings filled in.

        Called before the model is built.

        Args:
          encode: function from text to token ids, without an end token; None without a vocabulary.
          labels: label words of the task; empty if it has none.
          tasks: names of the training tasks, in the order of a batch's `tasks`.
        """
        return self

    def trains(self, path: str, added: bool) -> bool:
        """Whether the leaf at `path` is trained; `added` if this method added it."""
        return added

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        """Returns values, by path, for added leaves that start from the backbone, text or a file.

        Called once, outside jit, after the backbone is loaded. Other leaves keep the values of
        their module's initialiser.
        """
        return {}

    def exports(self, trained: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns arrays, by file name, that are usable without the method's other leaves.

        Args:
          trained: trained leaves, by path.
        """
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that trained leaves depend on, JSON values by name ("LoRA.alpha")."""
        return {
            f"{type(self).__name__}.{field.name}": _as_json(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in self.only_in_training
        }

    def said(self, setting: str) -> str:
        """The setting as text for the model card; "" if this method has no such setting."""
        return str(getattr(self, setting, ""))

    def folded(self) -> "Method":
        """Returns the method that predicts the same without what only training needs."""
        return self

    def fold(self, leaves: Mapping[str, Any], config: Config) -> dict[str, Any]:
        """Converts the leaves of this method's model, by path, to those of `folded()`'s model."""
        return dict(leaves)

    def merge(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Converts this method's leaves to those of a plain backbone that predicts the same.

        Raises:
          ValueError: if no plain backbone predicts the same.
        """
        raise ValueError(f"{type(self).__name__} cannot be merged into the backbone")


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return re.sub(r" at 0x\w+", "", repr(value))
