"""Prompt design (Brown et al., 2020): the prompt is text in the data; nothing is trained."""

import dataclasses

from prompt_tuning.methods.base import Method


@dataclasses.dataclass(frozen=True)
class PromptDesign(Method):
    """Adds nothing and trains nothing: 0 parameters.

    `prompt_tuning.data.variants.prompt_design` puts the text in front of the evaluated inputs.
    """
