"""A method whose prompt is read from a file, for evaluation and inference."""

import dataclasses

from prompt_tuning.checkpoint import prompts
from prompt_tuning.errors import UserError
from prompt_tuning.methods.base import Method
from prompt_tuning.methods.combined import Combined
from prompt_tuning.methods.initializers import FromFile
from prompt_tuning.methods.prompt import PromptTuning


def with_prompt(
    method: Method, path: str = "", trained_file: str = "", allow_other_backbone: bool = False
) -> Method:
    """Returns a method that starts from the prompt of a file, whatever its initialiser and length.

    Args:
      method: Method of the run that trained the prompt.
      path: Prompt file; "" if all trained leaves come from `trained_file`.
      trained_file: File of all trained leaves, or "".
      allow_other_backbone: Whether the prompt's card may name another backbone.

    Raises:
      UserError: If there is no file for a prompt, no prompt for a file, or two files for a prompt.
    """
    if not path:
        if type(method) is PromptTuning and not trained_file:
            raise UserError(
                "PROMPT_FILE is not set: give the trained prompt, or TRAINED_FILE, or the "
                "methods/*.gin of another method"
            )
        return method
    whole = isinstance(method, PromptTuning) and not method.decoder_length
    if not trained_file and not whole:
        raise UserError(
            f"PROMPT_FILE = {path!r}: METHOD = {type(method).__name__} is more than a prompt, or "
            "none; leave it out, and give TRAINED_FILE if the method trains something"
        )
    if trained_file and whole:
        raise UserError(
            f"PROMPT_FILE = {path!r}, TRAINED_FILE = {trained_file!r}: both have the prompt; give "
            "one of them"
        )
    if isinstance(method, PromptTuning):
        initializer = FromFile(path, allow_other_backbone)
        return dataclasses.replace(method, length=prompts.length(path), initializer=initializer)
    if isinstance(method, Combined) and any(isinstance(m, PromptTuning) for m in method.methods):
        parts = [
            with_prompt(part, path, trained_file, allow_other_backbone)
            if isinstance(part, PromptTuning)
            else part
            for part in method.methods
        ]
        return dataclasses.replace(method, methods=parts)
    return method


def prompt_start(method: Method) -> FromFile | None:
    """The initialiser of a method, or of a part of it, that reads a prompt file; None for none."""
    parts = getattr(method, "methods", (method,))
    starts = [getattr(part, "initializer", None) for part in parts]
    return next((start for start in starts if isinstance(start, FromFile)), None)
