"""T5: its configuration, positions, and names in Hugging Face's checkpoints."""

from prompt_tuning.t5.config import PRESETS, T5Config, preset
from prompt_tuning.t5.network import T5
from prompt_tuning.transformer.network import Cache, Encoded
from prompt_tuning.transformer.sites import Sites

__all__ = ["PRESETS", "T5", "Cache", "Encoded", "Sites", "T5Config", "preset"]
