"""The T5 backbone: configuration, layers, network."""

from prompt_tuning.t5.config import PRESETS, T5Config, preset
from prompt_tuning.t5.network import T5, Cache, Encoded
from prompt_tuning.t5.sites import Sites

__all__ = ["PRESETS", "T5", "Cache", "Encoded", "Sites", "T5Config", "preset"]
