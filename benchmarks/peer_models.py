"""Models of transformers by the content of config.json, and prompts of PEFT for them.

Runs in the peer's environment; imports nothing of this package.
"""

from collections.abc import Mapping
from typing import Any

from peft import PromptTuningConfig, TaskType
from transformers import (
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)
from transformers.models.t5.modeling_t5 import T5Block
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaDecoderLayer, T5GemmaEncoderLayer

Block = (T5Block, T5GemmaEncoderLayer, T5GemmaDecoderLayer)


def random_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """A model with random weights, of transformers' own attention."""
    if config["model_type"] == "t5gemma":
        return T5GemmaForConditionalGeneration(T5GemmaConfig(**config))
    return T5ForConditionalGeneration(T5Config(**config))


def prompt_config(config: Mapping[str, Any], length: int, **settings: Any) -> PromptTuningConfig:
    """Prompt tuning of the encoder's input alone.

    PEFT does not find T5Gemma's sizes in its configuration, which has one for each stack. Without
    num_transformer_submodules it prepends as many vectors to the decoder's input.
    """
    if config["model_type"] == "t5gemma":
        encoder = config["encoder"]
        settings |= {
            "token_dim": encoder["hidden_size"],
            "num_layers": encoder["num_hidden_layers"],
            "num_attention_heads": encoder["num_attention_heads"],
        }
    return PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=length,
        num_transformer_submodules=1,
        **settings,
    )
