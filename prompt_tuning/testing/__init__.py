"""Dummies and checks for tests: tiny models, clean registries, commands in process.

Also for the tests of projects that build on this one: `check_method(MyMethod())` holds a tuning
method to the contract that the trainer, the checkpoints and the decoders rely on.
"""

from prompt_tuning.testing.commands import CommandResult, assert_mistake, run_command
from prompt_tuning.testing.methods import check_method
from prompt_tuning.testing.models import (
    padded_tokens,
    random_batch,
    random_leaves,
    tiny_config,
    tiny_gemma,
    tiny_model,
)
from prompt_tuning.testing.registries import clean_registries
from prompt_tuning.testing.vocabularies import Numbers

__all__ = [
    "CommandResult",
    "Numbers",
    "assert_mistake",
    "check_method",
    "clean_registries",
    "padded_tokens",
    "random_batch",
    "random_leaves",
    "run_command",
    "tiny_config",
    "tiny_gemma",
    "tiny_model",
]
