"""Deep prompt tuning (P-tuning v2, Liu et al., 2022): prompt vectors at every layer's input."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.initializers import ClassLabels, Initializer
from prompt_tuning.methods.prompt import Prompt, add, fill
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.sites import Embedded, Place


@dataclasses.dataclass(frozen=True)
class DeepPrompt(Method):
    """P positions in front of the encoder's input, whose vectors are trained per layer.

    P D parameters per layer. They replace the previous layer's output at these positions.

    Attributes:
      length: number of positions, P.
      layers: indices, from 0, of the encoder layers with vectors, to which layer 0 always belongs;
        None for all.
      initializer: initial values of layer 0; other layers start uniform on [-0.5, 0.5).
    """

    length: int = 20
    layers: Sequence[int] | None = None
    initializer: Initializer = ClassLabels()

    def __post_init__(self) -> None:
        choices.positive("PROMPT_LENGTH", self.length)
        choices.freeze(self, "layers")

    @property
    def positions(self) -> int | None:
        return self.length

    def check(self, config: Config) -> None:
        if config.scan_layers:
            raise ValueError(
                "SCAN_LAYERS = True: deep prompts differ by layer; set SCAN_LAYERS = False"
            )
        choices.layers("DEEP_PROMPT_LAYERS", self.layers, config.stack("encoder").layers, config)

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
        return add(x, segments, positions, Prompt(self.length, name="prompt_0")(x), "prefix")

    def layer_input(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        place: Place,
    ) -> Float[Array, "batch length embed"]:
        if place.layer == 0 or not choices.has(self.layers, place):
            return x
        prompt = Prompt(self.length, name=f"prompt_{place.layer}")(x)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), segments.shape)
        return fill(x, segments, positions, prompt)

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {"encoder/prompt_0/prompt": self.initializer(self.length, backbone, rng)}
