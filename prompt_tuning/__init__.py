"""Prompt tuning of frozen T5 models in JAX (Lester et al., EMNLP 2021)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "Sampling", "load"]

if TYPE_CHECKING:
    from prompt_tuning.serving.model import Model, Sampling, load


def __getattr__(name: str) -> Any:
    """`load` and what belongs to it; JAX is imported when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prompt_tuning.serving import model

    return getattr(model, name)
