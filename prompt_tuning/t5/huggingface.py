"""Names and settings of T5, T5 v1.1, Flan-T5, mT5 and ByT5 in Hugging Face transformers.

The model is the same as T5X's: neither divides attention by sqrt(d_kv), and both divide tied logits
by sqrt(d_model).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.errors import CheckpointError
from prompt_tuning.t5.config import T5Config
from prompt_tuning.transformer.paths import EMBEDDING

MODEL_TYPES = ("t5", "mt5")
PREFIXES = ("shared.", "encoder.", "decoder.", "lm_head.")
_LM_HEAD = "lm_head.weight"
_TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias"
COPIES = {
    EMBEDDING: ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
}
TIED = {_LM_HEAD: EMBEDDING}
# Present in checkpoints of 2020, but unused: cross attention has no relative positions.
UNUSED = frozenset(("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",))

_OUTER = {
    EMBEDDING: COPIES[EMBEDDING][0],
    "decoder/logits_dense/kernel": _LM_HEAD,
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "encoder/relpos_bias/rel_embedding": f"encoder.{_TABLE}.weight",
    "decoder/relpos_bias/rel_embedding": f"decoder.{_TABLE}.weight",
}
_LAYER = {
    "encoder": {
        "pre_attention_layer_norm": "0.layer_norm",
        "attention": "0.SelfAttention",
        "pre_mlp_layer_norm": "1.layer_norm",
        "mlp": "1.DenseReluDense",
    },
    "decoder": {
        "pre_self_attention_layer_norm": "0.layer_norm",
        "self_attention": "0.SelfAttention",
        "pre_cross_attention_layer_norm": "1.layer_norm",
        "encoder_decoder_attention": "1.EncDecAttention",
        "pre_mlp_layer_norm": "2.layer_norm",
        "mlp": "2.DenseReluDense",
    },
}
_KERNEL = {"query": "q", "key": "k", "value": "v", "out": "o"}

# Fields of config.json: our names; defaults of absent ones; the only supported values.
_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "d_ff",
    "num_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
    "relative_attention_num_buckets": "relative_buckets",
    "relative_attention_max_distance": "relative_max_distance",
    "dropout_rate": "dropout_rate",
}
_ABSENT = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
}
_FEED_FORWARD = {"gated-gelu": ("gelu", "linear"), "relu": ("relu",)}
_DENSE_ACTIVATION = {"gated-gelu": "gelu_new", "relu": "relu"}
_MODELLED = {
    "layer_norm_epsilon": 1e-6,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "is_encoder_decoder": True,
}


def their_name(path: str) -> str:
    """Hugging Face's name for the backbone's leaf at `path`."""
    if path in _OUTER:
        return _OUTER[path]
    stack, layer, module, *kernel = path.split("/")
    name = f"{stack}.block.{layer.removeprefix('layers_')}.layer.{_LAYER[stack][module]}"
    names = [name] if kernel == ["scale"] else [name, _KERNEL.get(kernel[0], kernel[0])]
    return ".".join([*names, "weight"])


def config_of(path: epath.Path, content: Mapping[str, Any]) -> T5Config:
    """The configuration that the content of a config.json describes.

    Raises:
      CheckpointError: naming a field with an unsupported value.
      ValueError: if the shape is impossible.
    """
    kind = content["model_type"]
    for name, value in _MODELLED.items():
        if content.get(name, value) != value:
            raise CheckpointError(f"{path}: {name} is {content[name]!r}; must be {value!r}")
    default = "gated-gelu" if kind == "mt5" else "relu"
    forward = content.get("feed_forward_proj", default)
    dense = _DENSE_ACTIVATION.get(forward)
    if dense is None or content.get("dense_act_fn", dense) != dense:
        raise CheckpointError(
            f"{path}: feed_forward_proj is {forward!r} (dense_act_fn "
            f"{content.get('dense_act_fn')!r}); must be {' or '.join(_FEED_FORWARD)}"
        )
    tied = content.get("tie_word_embeddings", kind == "t5")
    # Recent versions overwrite tie_word_embeddings, and keep its former value here.
    tied = content.get("scale_decoder_outputs", tied)
    fields = {ours: _number(path, content, theirs) for theirs, ours in _FIELDS.items()}
    return T5Config(**fields, activations=_FEED_FORWARD[forward], tied_logits=bool(tied))


def config_fields(config: T5Config, dtype: np.dtype) -> dict[str, Any]:
    """The fields of transformers' `config.json` for a backbone stored in `dtype`.

    Raises:
      CheckpointError: if transformers has no name for the activations.
    """
    forward = next((k for k, v in _FEED_FORWARD.items() if v == config.activations), None)
    if forward is None:
        raise CheckpointError(
            f"activations {config.activations}: config.json has names only for "
            f"{' and '.join(str(names) for names in _FEED_FORWARD.values())}"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "feed_forward_proj": forward,
        "tie_word_embeddings": config.tied_logits,
        "scale_decoder_outputs": config.tied_logits,
        "torch_dtype": dtype.name,
        **_MODELLED,
        **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
    }


def _number(path: epath.Path, content: Mapping[str, Any], name: str) -> Any:
    value = content.get(name)
    if value is None:
        value = content.get("num_layers") if name == "num_decoder_layers" else _ABSENT.get(name)
    kinds = (int, float) if name == "dropout_rate" else (int,)
    if type(value) not in kinds:
        raise CheckpointError(f"{path}: {name} is {value!r}; must be a number")
    return value
