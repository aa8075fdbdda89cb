"""T5Gemma: its configuration, positions, and names in Hugging Face's checkpoints."""

from prompt_tuning.gemma.config import PRESETS, StackConfig, T5GemmaConfig
from prompt_tuning.gemma.network import T5Gemma

__all__ = ["PRESETS", "StackConfig", "T5Gemma", "T5GemmaConfig"]
