"""Serving of many tasks by one frozen backbone, each batch a mix of their rows.

The names below are imported when they are first asked for, and JAX with them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_tuning.decoding.sample import Sampling
    from prompt_tuning.serving.answers import Classification, Generation
    from prompt_tuning.serving.bank import PromptBank
    from prompt_tuning.serving.model import Model, load
    from prompt_tuning.serving.task_set import TaskSet

__all__ = ["Classification", "Generation", "Model", "PromptBank", "Sampling", "TaskSet", "load"]

_MODULES = {
    "Classification": "prompt_tuning.serving.answers",
    "Generation": "prompt_tuning.serving.answers",
    "Model": "prompt_tuning.serving.model",
    "PromptBank": "prompt_tuning.serving.bank",
    "Sampling": "prompt_tuning.decoding.sample",
    "TaskSet": "prompt_tuning.serving.task_set",
    "load": "prompt_tuning.serving.model",
}


def __getattr__(name: str) -> Any:
    """Imports a public name's module when the name is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
