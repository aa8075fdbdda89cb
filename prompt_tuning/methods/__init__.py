"""Tuning methods: what each adds to the frozen backbone, and which leaves it trains."""

from prompt_tuning.methods.adapter import Adapter
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.bitfit import BitFit
from prompt_tuning.methods.combined import Combined
from prompt_tuning.methods.deep_prompt import DeepPrompt
from prompt_tuning.methods.full import ModelTuning
from prompt_tuning.methods.ia3 import IA3
from prompt_tuning.methods.initializers import (
    ClassLabels,
    FromFile,
    SampledVocabulary,
    Text,
    Uniform,
)
from prompt_tuning.methods.lora import LoRA
from prompt_tuning.methods.multitask import MultitaskPrompt
from prompt_tuning.methods.p_tuning import PTuning
from prompt_tuning.methods.prefix import PrefixTuning
from prompt_tuning.methods.prompt import PromptTuning
from prompt_tuning.methods.prompt_design import PromptDesign
from prompt_tuning.methods.warp import Warp
from prompt_tuning.methods.wayward import Wayward

__all__ = [
    "IA3",
    "Adapter",
    "Backbone",
    "BitFit",
    "ClassLabels",
    "Combined",
    "DeepPrompt",
    "FromFile",
    "LoRA",
    "Method",
    "ModelTuning",
    "MultitaskPrompt",
    "PTuning",
    "PrefixTuning",
    "PromptDesign",
    "PromptTuning",
    "SampledVocabulary",
    "Text",
    "Uniform",
    "Warp",
    "Wayward",
]
