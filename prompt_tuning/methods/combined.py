"""Combinations of methods, such as a prompt and LoRA."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.sites import Attend, Embedded, Place


@dataclasses.dataclass(frozen=True)
class Combined(Method):
    """Applies several methods at each site, in order, and trains the parameters of all.

    Nothing is exported, since no part predicts the same alone.

    Attributes:
      methods: at least two methods whose leaves have different paths.
    """

    methods: Sequence[Method] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        if len(self.methods) < 2:
            raise ValueError(f"Combined.methods = {self.methods}: must be at least two methods")

    @property
    def positions(self) -> int | None:
        counts = [method.positions for method in self.methods]
        packable = [count for count in counts if count is not None]
        if len(packable) < len(counts) or sum(map(bool, packable)) > 1:
            return None  # two methods would write over the same positions of a packed example
        return max(packable)

    @property
    def decoder_positions(self) -> int:
        return sum(method.decoder_positions for method in self.methods)

    def check(self, config: Config) -> None:
        for method in self.methods:
            method.check(config)

    def for_task(
        self,
        encode: Callable[[str], list[int]] | None,
        labels: Sequence[str],
        tasks: Sequence[str] = (),
    ) -> Method:
        return Combined([method.for_task(encode, labels, tasks) for method in self.methods])

    def task_index(self, task: str) -> int | None:
        return next((i for m in self.methods if (i := m.task_index(task)) is not None), None)

    def trains(self, path: str, added: bool) -> bool:
        return any(method.trains(path, added) for method in self.methods)

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        return self._union(method.initial_values(backbone, seed) for method in self.methods)

    def penalty(self, leaves: Mapping[str, Any]) -> Array | float:
        return sum((method.penalty(leaves) for method in self.methods), 0.0)

    def said(self, setting: str) -> str:
        return ", ".join(filter(None, (method.said(setting) for method in self.methods)))

    @property
    def settings(self) -> dict[str, Any]:
        parts = {"Combined.methods": [type(method).__name__ for method in self.methods]}
        for i, method in enumerate(self.methods):
            parts |= {f"methods[{i}].{name}": value for name, value in method.settings.items()}
        return parts

    def folded(self) -> Method:
        return Combined([method.folded() for method in self.methods])

    def fold(self, leaves: Mapping[str, Any], config: Config) -> dict[str, Any]:
        return functools.reduce(lambda rest, m: m.fold(rest, config), self.methods, dict(leaves))

    def merge(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        return functools.reduce(lambda rest, m: m.merge(rest), self.methods, dict(leaves))

    def shared(self, stack: str, config: Config) -> Any:
        return [method.shared(stack, config) for method in self.methods]

    def embedded(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        stack: str,
        tasks: Int[Array, " batch"] | None = None,
    ) -> Embedded:
        for method in self.methods:
            x, segments, positions = method.embedded(x, segments, positions, stack, tasks)
        return x, segments, positions

    def layer_input(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        place: Place,
    ) -> Float[Array, "batch length embed"]:
        for method in self.methods:
            x = method.layer_input(x, segments, positions, place)
        return x

    def linear(
        self,
        call: Callable[[Array], Array],
        x: Float[Array, "*batch inputs"],
        place: Place,
        projection: str,
    ) -> Float[Array, "*batch outputs"]:
        for method in self.methods:
            call = functools.partial(method.linear, call, place=place, projection=projection)
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
        for method, part in zip(self.methods, shared, strict=True):
            call = functools.partial(method.attention, call, place=place, shared=part)
        return call(query, key, value, bias)

    def sublayer(
        self, y: Float[Array, "batch length embed"], place: Place
    ) -> Float[Array, "batch length embed"]:
        for method in self.methods:
            y = method.sublayer(y, place)
        return y

    def logits(
        self,
        logits: Float[Array, "batch length vocab"],
        hidden: Float[Array, "batch length embed"],
    ) -> Float[Array, "batch length vocab"]:
        for method in self.methods:
            logits = method.logits(logits, hidden)
        return logits

    @staticmethod
    def _union(parts) -> dict[str, Any]:
        return {name: array for part in parts for name, array in part.items()}
