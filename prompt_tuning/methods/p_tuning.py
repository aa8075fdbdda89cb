"""P-tuning (v1, Liu et al., 2021): a prompt computed by a small network during training."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.initializers import ClassLabels, Initializer
from prompt_tuning.methods.prompt import PROMPT_PATH, PromptTuning, add
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import unflatten
from prompt_tuning.transformer.sites import Embedded

_LEAVES = "encoder/prompt_encoder/"
ENCODERS = ("mlp", "lstm")


@dataclasses.dataclass(frozen=True)
class PTuning(Method):
    """A network computes the prompt from P trained inputs; it folds into a prompt of P D.

    With the MLP, P D + (D h + h) + (h h + h) + (h D + D) parameters are trained. The LSTM (one
    layer, both directions, 8 h (D + h + 1) parameters) is followed by an MLP 2h -> 2h -> D.

    Attributes:
      length: number of prompt vectors, P.
      hidden: width h of the network.
      encoder: "mlp" or "lstm".
      initializer: initial values of the network's inputs.
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
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        stack: str,
        tasks: Int[Array, " batch"] | None = None,
    ) -> Embedded:
        if stack == "decoder":
            return x, segments, positions
        prompt = self._network(x.shape[-1], name="prompt_encoder")().astype(x.dtype)
        return add(x, segments, positions, prompt, "prefix")

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {f"{_LEAVES}embedding": self.initializer(self.length, backbone, rng)}

    def exports(self, trained: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"prompt": self._prompt(trained)}

    def folded(self) -> Method:
        return PromptTuning(self.length)

    def fold(self, leaves: Mapping[str, Any], config: Config) -> dict[str, Any]:
        others = {path: leaf for path, leaf in leaves.items() if not path.startswith(_LEAVES)}
        return others | {PROMPT_PATH: self._prompt(leaves)}

    def _prompt(self, leaves: Mapping[str, Any]) -> np.ndarray:
        own = {p.removeprefix(_LEAVES): leaf for p, leaf in leaves.items() if p.startswith(_LEAVES)}
        network = self._network(own["embedding"].shape[1])
        return np.asarray(network.apply({"params": unflatten(own)}), np.float32)

    def _network(self, width: int, name: str | None = None) -> "PromptEncoder":
        return PromptEncoder(self.length, width, self.hidden, self.encoder == "lstm", name=name)


class PromptEncoder(nn.Module):
    """Computes a prompt [P, D] from P trained inputs [P, D], in float32."""

    length: int
    width: int
    hidden: int
    lstm: bool

    @nn.compact
    def __call__(self) -> Float[Array, "prompt embed"]:
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
