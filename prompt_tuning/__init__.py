"""Prompt tuning of frozen T5 models in JAX (Lester et al., EMNLP 2021)."""

__version__ = "0.1.0"
