"""Shapes of T5 models: one frozen dataclass, with the published sizes as values."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prompt_tuning.transformer.config import Architecture, Config, Stack


@dataclasses.dataclass(frozen=True)
class T5Config(Config):
    """Shape and numerics of a T5 encoder-decoder; `Config` documents the numerics.

    Attributes:
      vocab_size: number of rows of the embedding table, V (T5 pads 32,100 ids to 32,128).
      d_model: width of the residual stream, D.
      num_heads: number of attention heads, H.
      head_dim: width of a head; `num_heads * head_dim` need not equal `d_model`.
      d_ff: width of the feed-forward layer.
      num_encoder_layers: number of encoder layers.
      num_decoder_layers: number of decoder layers.
      activations: `("gelu", "linear")` for T5 v1.1 (gated), `("relu",)` for T5 v1.0.
      tied_logits: whether logits are the decoder's output times the embedding table, divided by
        sqrt(D), as in T5 v1.0.
      relative_buckets: number of relative-position buckets.
      relative_max_distance: distance from which all positions share the last bucket.
    """

    d_model: int
    num_heads: int
    head_dim: int
    d_ff: int
    num_encoder_layers: int
    num_decoder_layers: int
    activations: tuple[str, ...] = ("gelu", "linear")
    tied_logits: bool = False
    relative_buckets: int = 32
    relative_max_distance: int = 128

    def __post_init__(self) -> None:
        for name in (
            "d_model",
            "num_heads",
            "head_dim",
            "d_ff",
            "num_encoder_layers",
            "num_decoder_layers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"T5Config.{name} = {getattr(self, name)}: must be at least 1")
        super().__post_init__()
        # gin gives lists; a tuple keeps the configuration hashable.
        object.__setattr__(self, "activations", tuple(self.activations))

    @property
    def architecture(self) -> Architecture:
        encoder, decoder = (
            Stack(layers, self.d_model, self.num_heads, self.num_heads, self.head_dim, self.d_ff)
            for layers in (self.num_encoder_layers, self.num_decoder_layers)
        )
        return Architecture(encoder, decoder, self.activations, self.tied_logits)


def _v1_1(d_model: int, heads: int, d_ff: int, layers: int, vocab: int = 32_128) -> T5Config:
    return T5Config(vocab, d_model, heads, 64, d_ff, layers, layers)


def _v1_0(d_model: int, heads: int, head_dim: int, d_ff: int, layers: int) -> T5Config:
    return T5Config(
        32_128,
        d_model,
        heads,
        head_dim,
        d_ff,
        layers,
        layers,
        activations=("relu",),
        tied_logits=True,
    )


def _byt5(d_model: int, heads: int, d_ff: int, encoder: int, decoder: int) -> T5Config:
    return T5Config(384, d_model, heads, 64, d_ff, encoder, decoder)


_T5_1_1 = {
    "small": _v1_1(512, 6, 1_024, 8),
    "base": _v1_1(768, 12, 2_048, 12),
    "large": _v1_1(1_024, 16, 2_816, 24),
    "xl": _v1_1(2_048, 32, 5_120, 24),
    "xxl": _v1_1(4_096, 64, 10_240, 24),
}

PRESETS: Mapping[str, T5Config] = MappingProxyType(
    {
        # Ours: the demonstration backbone shipped with the package (docs/backbone.md), and a size
        # for unit tests.
        "demo": T5Config(8_192, 256, 4, 64, 512, 4, 2),
        "nano": T5Config(256, 16, 2, 8, 32, 2, 2),
        # For the paper's curves in miniature (docs/backbone.md): only widths vary.
        "ladder_xs": T5Config(8_192, 32, 2, 16, 64, 4, 2),
        "ladder_s": T5Config(8_192, 96, 4, 24, 256, 4, 2),
        "ladder_l": T5Config(8_192, 384, 6, 64, 1_024, 4, 2),
        **{f"t5_1_1_{size}": config for size, config in _T5_1_1.items()},
        # Flan-T5 is T5 v1.1, LM-adapted and instruction-tuned: the same shapes.
        **{f"flan_t5_{size}": config for size, config in _T5_1_1.items()},
        **{
            f"mt5_{size}": dataclasses.replace(config, vocab_size=250_112)
            for size, config in _T5_1_1.items()
        },
        "t5_1_0_small": _v1_0(512, 8, 64, 2_048, 6),
        "t5_1_0_base": _v1_0(768, 12, 64, 3_072, 12),
        "t5_1_0_large": _v1_0(1_024, 16, 64, 4_096, 24),
        "t5_1_0_3b": _v1_0(1_024, 32, 128, 16_384, 24),
        "t5_1_0_11b": _v1_0(1_024, 128, 128, 65_536, 24),
        "byt5_small": _byt5(1_472, 6, 3_584, 12, 4),
        "byt5_base": _byt5(1_536, 12, 3_968, 18, 6),
        "byt5_large": _byt5(1_536, 16, 3_840, 36, 12),
        "byt5_xl": _byt5(2_560, 32, 6_720, 36, 12),
        "byt5_xxl": _byt5(4_672, 64, 12_352, 36, 12),
    }
)


def preset(name: str, dropout_rate: float = 0.0, **numerics: Any) -> T5Config:
    """Returns the shape of a named size of T5; `numerics` are further fields of `Config`.

    Raises:
      ValueError: if no preset has that name.
    """
    if name not in PRESETS:
        raise ValueError(f"no T5 preset named {name!r}; available: {', '.join(sorted(PRESETS))}")
    return dataclasses.replace(PRESETS[name], dropout_rate=dropout_rate, **numerics)
