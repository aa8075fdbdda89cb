"""P-tuning (v1, Liu et al., 2021): a prompt made by a small network while it is trained."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import Array

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.initializers import ClassLabels, Initializer
from prompt_tuning.methods.prompt import PROMPT_PATH, PromptTuning, add
from prompt_tuning.t5.config import T5Config

_OWN = "encoder/prompt_encoder/"
ENCODERS = ("mlp", "lstm")


@dataclasses.dataclass(frozen=True)
class PTuning(Method):
    """The prompt is a network's output for P trained inputs; afterwards it is a prompt of P D.

    With the MLP, P D + (D h + h) + (h h + h) + (h D + D) parameters are trained. The LSTM (one
    layer, both directions, 8 h (D + h + 1) parameters) stands before an MLP 2h -> 2h -> D.

    Attributes:
      length: P.
      hidden: h.
      encoder: "mlp" or "lstm".
      initializer: where the network's inputs start.
    """

    length: int = 20
    hidden: int = 128
    encoder: str = "mlp"
    initializer: Initializer = ClassLabels()

    def __post_init__(self) -> None:
        choices.positive("PROMPT_LENGTH", self.length)
        choices.positive("P_TUNING_HIDDEN", self.hidden)
        if self.encoder not in ENCODERS:
            raise ValueError(
                f"P_TUNING_ENCODER = {self.encoder!r}: choose from {', '.join(ENCODERS)}"
            )

    @property
    def positions(self) -> int | None:
        return self.length

    def embedded(
        self,
        x: Array,
        segments: Array,
        positions: Array | None,
        stack: str,
        tasks: Array | None = None,
    ) -> tuple[Array, Array, Array | None]:
        if stack == "decoder":
            return x, segments, positions
        prompt = self._network(x.shape[-1], name="prompt_encoder")().astype(x.dtype)
        return add(x, segments, positions, prompt, "prefix")

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {f"{_OWN}embedding": self.initializer(self.length, backbone, rng)}

    def exports(self, trained: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"prompt": self._prompt(trained)}

    def folded(self) -> Method:
        return PromptTuning(self.length)

    def fold(self, leaves: Mapping[str, np.ndarray], config: T5Config) -> dict[str, np.ndarray]:
        kept = {path: leaf for path, leaf in leaves.items() if not path.startswith(_OWN)}
        return kept | {PROMPT_PATH: self._prompt(leaves)}

    def _prompt(self, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
        own = {p.removeprefix(_OWN): leaf for p, leaf in leaves.items() if p.startswith(_OWN)}
        params = unflatten_dict(own, sep="/")
        network = self._network(own["embedding"].shape[1])
        return np.asarray(network.apply({"params": params}), np.float32)

    def _network(self, width: int, name: str | None = None) -> "PromptEncoder":
        return PromptEncoder(self.length, width, self.hidden, self.encoder == "lstm", name=name)


class PromptEncoder(nn.Module):
    """A network over its own P inputs [P, D], float32, to a prompt [P, D]."""

    length: int
    width: int
    hidden: int
    lstm: bool

    @nn.compact
    def __call__(self) -> Array:
        uniform = nn.initializers.uniform(1.0)
        x = self.param("embedding", uniform, (self.length, self.width), jnp.float32)
        if not self.lstm:
            x = nn.relu(nn.Dense(self.hidden, name="layer_0")(x))
            x = nn.relu(nn.Dense(self.hidden, name="layer_1")(x))
            return nn.Dense(self.width, name="layer_2")(x)
        forward, backward = (
            nn.RNN(nn.OptimizedLSTMCell(self.hidden, name=name)) for name in ("forward", "backward")
        )
        x = cast(Array, nn.Bidirectional(forward, backward, name="lstm")(x))
        x = nn.relu(nn.Dense(2 * self.hidden, name="layer_0")(x))
        return nn.Dense(self.width, name="layer_1")(x)
