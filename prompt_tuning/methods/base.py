"""The interface of a tuning method."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.sites import Sites


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a method may look at when it initialises.

    Attributes:
      embedding: [V, D] token embeddings, perhaps sharded or in int8: take rows, not the whole.
      encode: text to token ids, without an end token; None where there is no vocabulary.
      labels: the task's label words, if it has any.
      fingerprint: of its values (`checkpoint.fingerprint`); None where it is not known.
    """

    embedding: Any
    encode: Callable[[str], list[int]] | None = None
    labels: tuple[str, ...] = ()
    fingerprint: Callable[[], str] | None = None


@dataclasses.dataclass(frozen=True)
class Method(Sites):
    """A tuning method: what it does at the backbone's sites, and which leaves it trains.

    Nothing outside a method's own file names the method: the trainer asks `trains`, and
    `prompt_tuning.model.params.ParamSplit` derives the rest by comparing shapes.
    """

    @property
    def positions(self) -> int | None:
        """Positions that the method takes in front of each packed example; None if its place is
        elsewhere, so that examples cannot be packed.
        """
        return 0

    def check(self, config: T5Config) -> None:
        """Raises ValueError, naming the setting, if it does not fit the backbone's shape."""

    def for_task(
        self,
        encode: Callable[[str], list[int]] | None,
        labels: Sequence[str],
        tasks: Sequence[str] = (),
    ) -> "Method":
        """The method with what it takes from the task filled in; called before the model is made.

        Args:
          encode: text to token ids, without an end token; None where there is no vocabulary.
          labels: the task's label words, if it has any.
          tasks: names of the tasks that are trained on, in the order of a batch's `tasks`.
        """
        return self

    def trains(self, path: str, added: bool) -> bool:
        """Whether the leaf at `path` is trained; `added` says that this method brought it."""
        return added

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        """Values, by path, of added leaves that start from the backbone, a text or a file.

        Called once, outside jit, after the backbone is loaded. Leaves left out keep the value of
        their module's own initialiser.
        """
        return {}

    def exports(self, trained: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Arrays of `trained` (by path) that stand for the method on their own, by file name."""
        return {}

    def said(self, setting: str) -> str:
        """What a card says of a setting that not every method has; "" without it."""
        return str(getattr(self, setting, ""))

    def folded(self) -> "Method":
        """What predicts after training: the method without what only training needed."""
        return self

    def fold(self, leaves: Mapping[str, np.ndarray], config: T5Config) -> dict[str, np.ndarray]:
        """Leaves of this method's model, by path, as those of `folded()`'s."""
        return dict(leaves)

    def merge(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Leaves of this method's model as those of a plain backbone that predicts the same.

        Raises:
          ValueError: if no backbone does.
        """
        raise ValueError(f"{type(self).__name__} cannot be merged into the backbone")
