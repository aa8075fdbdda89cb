"""Prompt tuning (Lester et al., 2021): P trained vectors in the encoder's input."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

from prompt_tuning.checkpoint.prompts import PROMPT_PATH
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.initializers import ClassLabels, Initializer
from prompt_tuning.transformer.layers import ArrayLike, partitioned_param
from prompt_tuning.transformer.sites import Embedded

DECODER_PROMPT_PATH = "decoder/prompt/prompt/prompt"
PLACEMENTS = ("prefix", "suffix", "suffix_before_eos")


@dataclasses.dataclass(frozen=True)
class InputPrompt(Method):
    """Base of methods with trained vectors in the model's input; not a method itself.

    Attributes:
      length: number of vectors in the encoder's input, P; 0 for a prompt in the decoder only.
      placement: "prefix"; "suffix" (after a row's last real token); "suffix_before_eos"; or an
        integer, the number of a row's tokens (at most all of them) that stay before the prompt.
      initializer: initial values of the prompt.
      decoder_length: number of vectors in front of the decoder's input, D more parameters each.
    """

    length: int = 100
    placement: str | int = "prefix"
    initializer: Initializer = ClassLabels()
    decoder_length: int = 0

    def __post_init__(self) -> None:
        whole = type(self.length) is type(self.decoder_length) is int
        if (
            not whole
            or min(self.length, self.decoder_length) < 0
            or self.length + self.decoder_length < 1
        ):
            raise ValueError(
                f"PROMPT_LENGTH = {self.length!r}, DECODER_PROMPT_LENGTH = "
                f"{self.decoder_length!r}: must be whole numbers from 0, and one of them positive"
            )
        is_position = isinstance(self.placement, int) and self.placement >= 0
        if not is_position and self.placement not in PLACEMENTS:
            raise ValueError(
                f"PROMPT_PLACEMENT = {self.placement!r}: choose from {', '.join(PLACEMENTS)}, or "
                "give a position (an integer from 0)"
            )

    @property
    def positions(self) -> int | None:
        return self.length if self.placement == "prefix" and not self.decoder_length else None

    @property
    def decoder_positions(self) -> int:
        return self.decoder_length

    def embedded(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        stack: str,
        tasks: Int[Array, " batch"] | None = None,
    ) -> Embedded:
        length, placement = self.length, self.placement
        if stack == "decoder":
            length, placement = self.decoder_length, "prefix"
        if not length:
            return x, segments, positions
        prompt = PromptModule(length, name="prompt")(x)
        return add(x, segments, positions, prompt, placement)

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        prompts = {
            PROMPT_PATH: (self.length, backbone),
            DECODER_PROMPT_PATH: (self.decoder_length, backbone.of_decoder()),
        }
        return {
            path: self.initializer(length, table, rng)
            for path, (length, table) in prompts.items()
            if length
        }

    def prompt_file(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        """The prompt by the name of its file; nothing if the decoder has a prompt too."""
        return {} if self.decoder_length else {"prompt": trained[PROMPT_PATH]}


@dataclasses.dataclass(frozen=True)
class PromptTuning(InputPrompt):
    """Prompt tuning: P x D parameters, one vector per added encoder position."""

    def exports(self, trained: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.prompt_file(trained)


class Prompt(nn.Module):
    """The prompt's parameters, `prompt` [P, D], uniform on [-0.5, 0.5) before initialisation."""

    length: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[ArrayLike, "prompt embed"]:
        axes, shape = ("prompt", "prompt_embed"), (self.length, x.shape[-1])
        prompt = partitioned_param(self, "prompt", _uniform, axes, shape)
        return prompt.astype(x.dtype)


class PromptModule(nn.Module):
    """Gives the prompt the original code's path, `prompt/prompt/prompt`."""

    length: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[ArrayLike, "prompt embed"]:
        return Prompt(self.length, name="prompt")(x)


def _uniform(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


def add(
    x: Float[Array, "batch length embed"],
    segments: Int[Array, "batch length"],
    positions: Int[Array, "batch length"] | None,
    prompt: Float[ArrayLike, "*rows prompt embed"],
    placement: str | int,
) -> Embedded:
    """Adds a prompt [P, D] or [B, P, D] to embedded input and returns what `Sites.embedded` does.

    Unpacked rows grow by P; packed examples have room for the prompt, which is overwritten.
    """
    if positions is None:
        return *place(x, segments, prompt, placement), None
    if placement != "prefix" or prompt.ndim != 2:
        raise ValueError(
            f"PROMPT_PLACEMENT = {placement!r}: packed examples take one prompt, as prefix only"
        )
    return fill(x, segments, positions, prompt), segments, positions


def fill(
    x: Float[Array, "batch length embed"],
    segments: Int[Array, "batch length"],
    positions: Int[Array, "batch length"],
    prompt: Float[ArrayLike, "prompt embed"],
) -> Float[Array, "batch length embed"]:
    """Writes a prompt [P, D] over the first P positions of each packed example of x [B, T, D]."""
    rows = jnp.take(prompt, jnp.minimum(positions, prompt.shape[0] - 1), axis=0)
    is_prompt = (positions < prompt.shape[0]) & (segments > 0)
    return jnp.where(is_prompt[..., None], rows, x)


def place(
    x: Float[ArrayLike, "batch length embed"],
    segments: Shaped[ArrayLike, "batch length"],
    prompt: Float[ArrayLike, "*rows prompt embed"],
    placement: str | int,
) -> tuple[Float[Array, "batch longer embed"], Shaped[Array, "batch longer"]]:
    """Inserts a prompt into embedded input.

    Args:
      x: [B, T, D] embedded tokens.
      segments: [B, T], positive at real tokens, which precede the padding.
      prompt: [P, D], or [B, P, D] for one prompt per row.
      placement: see `InputPrompt.placement`.

    Returns:
      The input [B, P+T, D] and its segments [B, P+T], 1 at the prompt.
    """
    batch, length = segments.shape
    prompt = jnp.broadcast_to(prompt, (batch, *prompt.shape[-2:]))
    real = jnp.ones(prompt.shape[:2], segments.dtype)
    if placement == "prefix":
        x = jnp.concatenate([prompt, x], axis=1)
        return x, jnp.concatenate([real, segments], axis=1)
    lengths = (segments > 0).sum(axis=1, keepdims=True)
    if isinstance(placement, int):
        start = jnp.minimum(placement, lengths)
    else:
        start = lengths if placement == "suffix" else jnp.maximum(lengths - 1, 0)
    # In each row, positions below `start` come from x, the next P from the prompt, the rest from x.
    p = prompt.shape[1]
    out = jnp.arange(p + length)[None, :]
    in_prompt = length + out - start
    source = jnp.where(out < start, out, jnp.where(out < start + p, in_prompt, out - p))
    x = jnp.take_along_axis(jnp.concatenate([x, prompt], axis=1), source[..., None], axis=1)
    return x, jnp.take_along_axis(jnp.concatenate([segments, real], axis=1), source, axis=1)
