"""Names and settings of T5Gemma in Hugging Face transformers."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.errors import CheckpointError
from prompt_tuning.gemma.config import StackConfig, T5GemmaConfig
from prompt_tuning.transformer.paths import DECODER_EMBEDDING, EMBEDDING

MODEL_TYPES = ("t5gemma",)
PREFIXES = ("model.", "lm_head.out_proj.")
COPIES = {
    EMBEDDING: ("model.encoder.embed_tokens.weight",),
    DECODER_EMBEDDING: ("model.decoder.embed_tokens.weight", "lm_head.out_proj.weight"),
}
TIED: Mapping[str, str] = {}
UNUSED: frozenset[str] = frozenset()

_OUTER = {
    EMBEDDING: COPIES[EMBEDDING][0],
    DECODER_EMBEDDING: COPIES[DECODER_EMBEDDING][0],
    "encoder/encoder_norm/scale": "model.encoder.norm.weight",
    "decoder/decoder_norm/scale": "model.decoder.norm.weight",
}
_MODULE = {
    "attention": "self_attn",
    "self_attention": "self_attn",
    "encoder_decoder_attention": "cross_attn",
    "mlp": "mlp",
    **{
        f"{place}_{ours}_layer_norm": f"{place}_{theirs}_layernorm"
        for place in ("pre", "post")
        for ours, theirs in (
            ("attention", "self_attn"),
            ("self_attention", "self_attn"),
            ("cross_attention", "cross_attn"),
            ("mlp", "feedforward"),
        )
    },
}
_KERNEL = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "wi_0": "gate_proj",
    "wi_1": "up_proj",
    "wo": "down_proj",
}

# Fields of each module of config.json: our names; the only supported values.
_FIELDS = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "intermediate_size": "hidden",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_heads",
    "head_dim": "head_dim",
}
_MODELLED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "pad_token_id": 0,
}
_WINDOWED = {"sliding_attention": True, "full_attention": False}
_EOS = 1


def their_name(path: str) -> str:
    """Hugging Face's name for the backbone's leaf at `path`."""
    if path in _OUTER:
        return _OUTER[path]
    stack, layer, module, *kernel = path.split("/")
    name = f"model.{stack}.layers.{layer.removeprefix('layers_')}.{_MODULE[module]}"
    names = [name] if kernel == ["scale"] else [name, _KERNEL[kernel[0]]]
    return ".".join([*names, "weight"])


def config_of(path: epath.Path, content: Mapping[str, Any]) -> T5GemmaConfig:
    """The configuration that the content of a config.json describes.

    Raises:
      CheckpointError: naming a field with an unsupported value.
      ValueError: if the shape is impossible.
    """
    modules: dict[str, Any] = {name: content.get(name) for name in ("encoder", "decoder")}
    for name, module in modules.items():
        if not isinstance(module, dict):
            raise CheckpointError(f"{path}: {name} is {module!r}; must be an object")
    encoder, decoder = (_stack(path, name, module) for name, module in modules.items())
    if not content.get("tie_word_embeddings", True):
        raise CheckpointError(f"{path}: tie_word_embeddings is False; must be True")
    module = modules["decoder"]
    fields = {
        "vocab_size": module.get("vocab_size", content.get("vocab_size", 256_000)),
        "start_token": module.get("bos_token_id", 2),
    }
    for name, value in fields.items():
        if type(value) is not int:
            raise CheckpointError(f"{path}: decoder.{name} is {value!r}; must be a whole number")
    ends = module.get("eos_token_id", _EOS)
    if _EOS not in (ends if isinstance(ends, list) else [ends]):
        raise CheckpointError(f"{path}: decoder.eos_token_id is {ends!r}; must be {_EOS}")
    top = content.get("eos_token_id", _EOS)
    further = {end for each in (ends, top) for end in (each if isinstance(each, list) else [each])}
    if further != {_EOS}:
        warnings.warn(
            f"{path}: eos_token_id is {sorted(further, key=str)}; texts end at {_EOS} alone here: "
            "give the others as `stop` of Model.generate, or cut the texts",
            stacklevel=2,
        )
    return T5GemmaConfig(
        encoder=encoder,
        decoder=decoder,
        logit_cap=_number(path, "decoder", module, "final_logit_softcapping", 30.0),
        dropout_rate=_number(path, "", content, "dropout_rate", 0.0) or 0.0,
        **fields,
    )


def _stack(path: epath.Path, name: str, module: Mapping[str, Any]) -> StackConfig:
    for field, value in _MODELLED.items():
        if module.get(field, value) != value:
            raise CheckpointError(f"{path}: {name}.{field} is {module[field]!r}; must be {value!r}")
    sizes: dict[str, Any] = {ours: module.get(theirs) for theirs, ours in _FIELDS.items()}
    for theirs, ours in _FIELDS.items():
        if type(sizes[ours]) is not int:
            raise CheckpointError(
                f"{path}: {name}.{theirs} is {sizes[ours]!r}; must be a whole number"
            )
    rope = module.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise CheckpointError(f"{path}: {name}.rope_parameters is {rope!r}; must be of all layers")
    if rope.get("rope_type", "default") != "default" or module.get("rope_scaling"):
        raise CheckpointError(f"{path}: {name}: scaled rotary positions are not supported")
    kinds = module.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise CheckpointError(f"{path}: {name}.layer_types is {kinds!r}; must be a list")
    if unknown := [kind for kind in kinds or () if kind not in tuple(_WINDOWED)]:
        raise CheckpointError(
            f"{path}: {name}.layer_types has {unknown[0]!r}; must be of {' and '.join(_WINDOWED)}"
        )
    window = module.get("sliding_window", 4_096)
    if type(window) is not int:
        raise CheckpointError(f"{path}: {name}.sliding_window is {window!r}; must be a number")
    return StackConfig(
        **sizes,
        query_scalar=_number(path, name, module, "query_pre_attn_scalar", 256) or 0,
        window=window,
        windowed=None if kinds is None else tuple(_WINDOWED[kind] for kind in kinds),
        rope_base=_number(path, name, {**rope, **module}, "rope_theta", 10_000.0) or 0.0,
        attention_cap=_number(path, name, module, "attn_logit_softcapping", 50.0),
    )


def _number(
    path: epath.Path, place: str, module: Mapping[str, Any], name: str, absent: float
) -> float | None:
    value = module.get(name, absent)
    if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
        field = f"{place}.{name}" if place else name
        raise CheckpointError(f"{path}: {field} is {value!r}; must be a number")
    return value


def config_fields(config: T5GemmaConfig, dtype: np.dtype) -> dict[str, Any]:
    """The fields of transformers' `config.json` for a backbone stored in `dtype`."""
    return {
        "architectures": ["T5GemmaForConditionalGeneration"],
        "model_type": MODEL_TYPES[0],
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "vocab_size": config.vocab_size,
        "dropout_rate": config.dropout_rate,
        "torch_dtype": dtype.name,
        "encoder": _module(config, config.encoder),
        "decoder": {
            **_module(config, config.decoder),
            "is_decoder": True,
            "cross_attention_hidden_size": config.encoder.width,
        },
    }


def _module(config: T5GemmaConfig, stack: StackConfig) -> dict[str, Any]:
    kinds = {windowed: kind for kind, windowed in _WINDOWED.items()}
    return {
        "model_type": "t5_gemma_module",
        **_MODELLED,
        **{theirs: getattr(stack, ours) for theirs, ours in _FIELDS.items()},
        "vocab_size": config.vocab_size,
        "bos_token_id": config.start_token,
        "eos_token_id": _EOS,
        "query_pre_attn_scalar": stack.query_scalar,
        "sliding_window": stack.window,
        "layer_types": [kinds[windowed] for windowed in stack.windowed or ()],
        "rope_theta": stack.rope_base,
        "attn_logit_softcapping": stack.attention_cap,
        "final_logit_softcapping": config.logit_cap,
    }
