"""Shapes of T5Gemma models (Zhang et al., 2025): a configuration, and the published sizes."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from prompt_tuning.transformer.config import Architecture, Config, Stack


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Shape of an encoder or decoder, as a module of `config.json` says it.

    Attributes:
      width: width of the residual stream, D.
      layers: number of layers.
      hidden: width of the feed-forward layers.
      heads: number of attention heads.
      key_heads: number of heads of keys and values, which divides `heads`.
      head_dim: width of a head.
      query_scalar: attention logits are divided by its root (`query_pre_attn_scalar`).
      window: in layers with a window, tokens see others up to this distance in the encoder, and up
        to `window - 1` back in the decoder (as transformers 5.23).
      windowed: whether each layer has a window; None for every other one, from the first.
      rope_base: wavelength base of the rotary positions.
      attention_cap: bound of the attention logits; None for none.
    """

    width: int
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    query_scalar: float
    window: int = 4_096
    windowed: tuple[bool, ...] | None = None
    rope_base: float = 10_000.0
    attention_cap: float | None = 50.0

    def __post_init__(self) -> None:
        self.shape()  # checks the sizes
        if self.head_dim % 2:
            raise ValueError(f"StackConfig.head_dim = {self.head_dim}: must be even")
        for name in ("query_scalar", "window", "rope_base", "attention_cap"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"StackConfig.{name} = {value}: must be above 0")
        windowed = self.windowed
        if windowed is None:
            windowed = tuple(layer % 2 == 0 for layer in range(self.layers))
        if len(windowed) != self.layers:
            raise ValueError(
                f"StackConfig.windowed has {len(windowed)} values for {self.layers} layers"
            )
        object.__setattr__(self, "windowed", tuple(windowed))

    def shape(self) -> Stack:
        """The stack in the words of the shared layers."""
        return Stack(
            self.layers,
            self.width,
            self.heads,
            self.key_heads,
            self.head_dim,
            self.hidden,
            query_scale=self.query_scalar**-0.5,
            attention_cap=self.attention_cap,
            embedding_scale=self.width**0.5,
        )


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig(Config):
    """Shape and numerics of a T5Gemma; `Config` documents the numerics.

    Attributes:
      encoder, decoder: shapes of the stacks, which may differ in width.
      start_token: the decoder's first token, `<bos>`.
      logit_cap: bound of the output's logits; None for none.
    """

    encoder: StackConfig
    decoder: StackConfig
    start_token: int = 2
    logit_cap: float | None = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention != "einsum":
            raise ValueError(
                f"ATTENTION = {self.attention!r}: does not bound attention logits, as T5Gemma "
                "does; set ATTENTION = 'einsum'"
            )
        if self.logit_cap is not None and self.logit_cap <= 0:
            raise ValueError(f"T5GemmaConfig.logit_cap = {self.logit_cap}: must be above 0")
        if not 0 <= self.start_token < self.vocab_size:
            raise ValueError(
                f"T5GemmaConfig.start_token = {self.start_token}: must be a token, from 0 to "
                f"{self.vocab_size - 1}"
            )

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            self.encoder.shape(),
            self.decoder.shape(),
            activations=("gelu", "linear"),
            tied_logits=True,
            start_token=self.start_token,
            norm_offset=1.0,
            post_norms=True,
            logit_cap=self.logit_cap,
        )


# The small, base, large and XL stacks have the shapes of T5 v1.1, but 8 heads in the small one; 2B
# and 9B are those of Gemma 2. Each pair has the number of parameters of the published checkpoints
# (docs/models.md).
_STACKS = {
    "s": StackConfig(512, 8, 1_024, 8, 8, 64, query_scalar=64),
    "b": StackConfig(768, 12, 2_048, 12, 12, 64, query_scalar=64),
    "l": StackConfig(1_024, 24, 2_816, 16, 16, 64, query_scalar=64),
    "xl": StackConfig(2_048, 24, 5_120, 32, 32, 64, query_scalar=64),
    "2b": StackConfig(2_304, 26, 9_216, 8, 4, 256, query_scalar=256),
    "9b": StackConfig(3_584, 42, 14_336, 16, 8, 256, query_scalar=256),
}
_PAIRS = ("s_s", "b_b", "l_l", "xl_xl", "2b_2b", "9b_2b", "9b_9b")


def _published(encoder: str, decoder: str) -> T5GemmaConfig:
    return T5GemmaConfig(256_000, _STACKS[encoder], _STACKS[decoder])


PRESETS: Mapping[str, T5GemmaConfig] = MappingProxyType(
    {
        # Ours, for tests: a window shorter than the inputs, and heads that share keys.
        "t5gemma_nano": T5GemmaConfig(
            256,
            StackConfig(16, 2, 32, 4, 2, 8, query_scalar=8, window=4),
            StackConfig(16, 2, 32, 4, 2, 8, query_scalar=8, window=4),
        ),
        # Ours, with the demonstration's vocabulary; its weights are random (docs/models.md).
        "t5gemma_demo": T5GemmaConfig(
            8_192,
            StackConfig(128, 4, 256, 4, 2, 32, query_scalar=32, window=32),
            StackConfig(128, 2, 256, 4, 2, 32, query_scalar=32, window=32),
            start_token=0,
        ),
        **{f"t5gemma_{pair}": _published(*pair.split("_")) for pair in _PAIRS},
    }
)
