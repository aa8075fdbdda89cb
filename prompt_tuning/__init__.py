"""Prompt tuning of frozen T5 models in JAX (Lester et al., EMNLP 2021)."""

from typing import TYPE_CHECKING, Any

from prompt_tuning.runtime import huge_pages

__version__ = "0.1.0"
__all__ = ["Model", "Sampling", "load"]

if TYPE_CHECKING:
    from prompt_tuning.serving import Model, Sampling, load


huge_pages.restart_command()  # returns, unless a command that computes is starting


def __getattr__(name: str) -> Any:
    """Imports the public names when they are first asked for, and JAX with them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prompt_tuning import serving

    return getattr(serving, name)
