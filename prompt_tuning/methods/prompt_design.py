"""Prompt design (Brown et al., 2020): the prompt is text in the data, and nothing is trained."""

import dataclasses

from prompt_tuning.methods.base import Method


@dataclasses.dataclass(frozen=True)
class PromptDesign(Method):
    """Adds nothing to the backbone and trains nothing of it: 0 parameters.

    `prompt_tuning.data.variants.prompt_design` puts the text in front of what is evaluated.
    """
