"""Tuning methods: what is added to the frozen backbone, and which leaves are trained."""

from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.full import ModelTuning
from prompt_tuning.methods.initializers import (
    ClassLabels,
    FromFile,
    SampledVocabulary,
    Text,
    Uniform,
)
from prompt_tuning.methods.prompt import PromptTuning

__all__ = [
    "Backbone",
    "ClassLabels",
    "FromFile",
    "Method",
    "ModelTuning",
    "PromptTuning",
    "SampledVocabulary",
    "Text",
    "Uniform",
]
