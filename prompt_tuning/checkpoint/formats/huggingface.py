"""Reads and writes T5, T5 v1.1, Flan-T5, mT5 and ByT5 in the format of Hugging Face transformers.

A checkpoint is a folder with `config.json` and `model.safetensors`, or several files and an index.
The model is the same as T5X's: neither divides attention by sqrt(d_kv), and both divide tied logits
by sqrt(d_model). Matrices other than the embedding are stored transposed. `.bin` files are pickles,
which can run any code when they are read; they are refused.
"""

import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from prompt_tuning.checkpoint.fit import Shape, check_fits
from prompt_tuning.checkpoint.formats import safetensors_file
from prompt_tuning.checkpoint.formats.safetensors_file import Array, Stored
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import folder_when_done
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import EMBEDDING, init_shapes
from prompt_tuning.t5.paths import flatten

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 << 30  # for years the default of transformers
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

OUTPUT = "decoder/logits_dense/kernel"
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_LM_HEAD = "lm_head.weight"
# Present in checkpoints of 2020, but unused: cross attention has no relative positions.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias"
_OUTER = {
    EMBEDDING: _EMBEDDINGS[0],
    OUTPUT: _LM_HEAD,
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


def name_in(tensors: Mapping[str, Any], path: str) -> str:
    """The leaf's name among `tensors`; safetensors may keep any one of the embedding's copies."""
    names = _EMBEDDINGS if path == EMBEDDING else ()
    return next((name for name in names if name in tensors), their_name(path))


def shapes_of(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the backbone's leaves by path."""
    return {path: leaf.shape for path, leaf in flatten(nn.unbox(init_shapes(config))).items()}


def is_folder(path: epath.Path) -> bool:
    """Whether a folder contains a checkpoint of transformers, pickled or not."""
    return any((path / name).exists() for name in (CONFIG, SINGLE, INDEX, "pytorch_model.bin"))


def uses_names(tensors: Mapping[str, Stored]) -> bool:
    """Whether tensors have Hugging Face's names, with an ending that our paths never have."""
    return any(name.endswith(".weight") for name in tensors)


def tensors_at(path: epath.Path) -> dict[str, Stored]:
    """Opens tensors by Hugging Face's names, without reading them.

    Args:
      path: folder, index file or `.safetensors` file.

    Raises:
      CheckpointError: if they are missing, damaged or pickled.
    """
    if path.suffix == safetensors_file.SUFFIX:
        return safetensors_file.stored(path)
    if path.is_dir() and (path / SINGLE).exists():
        return safetensors_file.stored(path / SINGLE)
    index = path / INDEX if path.is_dir() else path
    if not index.exists():
        _refuse_pickles(path)
        raise CheckpointError(
            f"{path}: contains neither {SINGLE} nor {INDEX}; copy the weights too"
        )
    files = _weight_map(index)
    shards = {
        file: safetensors_file.stored(index.parent / file) for file in sorted(set(files.values()))
    }
    for name, file in files.items():
        if name not in shards[file]:
            raise CheckpointError(f"{index}: {name} is not in {file}; copy the checkpoint again")
    return {name: shards[file][name] for name, file in files.items()}


def refuse_pickle(path: epath.Path) -> None:
    """Raises CheckpointError if the file's name is that of a pickle."""
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path}: {path.suffix} files are pickles, which can run any code when they are read; "
            "give the checkpoint as safetensors (transformers: save_pretrained)"
        )


def leaves_of(
    path: object, tensors: Mapping[str, Stored], shapes: Mapping[str, Shape]
) -> dict[str, Stored]:
    """Converts tensors to leaves by our paths, in our layout; reads copies of the embedding only.

    Args:
      path: path of the checkpoint, for error messages.
      tensors: result of `tensors_at`.
      shapes: shapes of all leaves of the backbone; without an output layer, logits are tied.

    Raises:
      CheckpointError: naming tensors that are missing, unexpected or mis-shaped, or a copy of the
        embedding that differs from it.
    """
    names = {ours: name_in(tensors, ours) for ours in shapes}
    embedding = names[EMBEDDING]
    wanted = {name: _transposed(ours, shapes[ours]) for ours, name in names.items()}
    copies = {*_EMBEDDINGS, _LM_HEAD} & tensors.keys() - wanted.keys()
    sizes = {name: tensor.shape for name, tensor in tensors.items()}
    check_fits(sizes, wanted, path=path, ignore=lambda name: name in copies | {_UNUSED})
    for name in sorted(copies):
        if not np.array_equal(tensors[name], tensors[embedding]):
            raise CheckpointError(
                f"{path}: {name} must be equal to {embedding} in this model; choose the model of "
                "the checkpoint (T5 v1.1 has a separate lm_head)"
            )
    return {ours: leaf(ours, tensors[name]) for ours, name in names.items()}


def leaf(path: str, array: Array) -> Stored:
    """Converts the leaf at `path` between their layout and ours, in either direction; lazy."""
    shape = _transposed(path, array.shape)
    read = (lambda: np.asarray(array)) if path == EMBEDDING else (lambda: np.asarray(array).T)
    return Stored(shape, np.dtype(array.dtype), read)


def config_of(folder: epath.PathLike) -> T5Config:
    """Reads the shape of the backbone from a folder's `config.json`.

    Raises:
      CheckpointError: if there is none, or naming a field with an unsupported value.
    """
    path = epath.Path(folder).expanduser() / CONFIG
    content = _json(path)
    kind = content.get("model_type")
    if kind not in ("t5", "mt5"):
        raise CheckpointError(f"{path}: model_type is {kind!r}; must be t5 or mt5")
    if "quantization_config" in content:
        raise CheckpointError(f"{path}: quantization_config: give an unquantised checkpoint")
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
    try:
        return T5Config(**fields, activations=_FEED_FORWARD[forward], tied_logits=bool(tied))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def save(
    folder: epath.PathLike,
    leaves: Mapping[str, Array],
    config: T5Config,
    *,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json` and weights for transformers' T5ForConditionalGeneration.

    One leaf is in memory at a time, and the folder gets its name once it is complete.

    Args:
      folder: folder to create.
      leaves: all leaves of the backbone, and no others, by our paths.
      config: shape of the backbone.
      dtype: dtype to write; None for `safetensors_file.common_dtype` of the leaves.
      shard_bytes: maximum size of a file; larger weights are divided among several.

    Raises:
      CheckpointError: if the folder exists, or the leaves or the config cannot be represented.
    """
    sizes = {path: array.shape for path, array in leaves.items()}
    check_fits(sizes, shapes_of(config), path=folder)
    dtype = safetensors_file.common_dtype(leaves) if dtype is None else np.dtype(dtype)
    fields = config_fields(config, dtype)
    named = {their_name(path): leaf(path, array) for path, array in leaves.items()}
    with folder_when_done(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        _write_shards(temporary, named, dtype, shard_bytes)


def _transposed(path: str, shape: Shape) -> tuple[int, ...]:
    return tuple(shape) if path == EMBEDDING else tuple(shape)[::-1]


def _refuse_pickles(folder: epath.Path) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        refuse_pickle(path)


def _weight_map(index: epath.Path) -> dict[str, str]:
    files = _json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{index}: contains no weight_map; copy the checkpoint again")
    for file in files.values():
        if not isinstance(file, str) or "/" in file or not file.endswith(safetensors_file.SUFFIX):
            raise CheckpointError(
                f"{index}: {file!r} is not a {safetensors_file.SUFFIX} file beside it"
            )
    return files


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not valid JSON ({error}); copy the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object; copy the checkpoint again")
    return content


def _number(path: epath.Path, content: Mapping[str, Any], name: str) -> Any:
    value = content.get(name)
    if value is None:
        value = content.get("num_layers") if name == "num_decoder_layers" else _ABSENT.get(name)
    kinds = (int, float) if name == "dropout_rate" else (int,)
    if type(value) not in kinds:
        raise CheckpointError(f"{path}: {name} is {value!r}; must be a number")
    return value


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


def _write_shards(
    folder: epath.Path, named: Mapping[str, Stored], dtype: np.dtype, shard_bytes: int
) -> None:
    shards: list[dict[str, Stored]] = [{}]
    used = total = 0
    for name, tensor in named.items():
        size = int(np.prod(tensor.shape)) * dtype.itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used, total = used + size, total + size
    if len(shards) == 1:
        return safetensors_file.write(folder / SINGLE, shards[0], dtype, {"format": "pt"})
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}{safetensors_file.SUFFIX}"
        safetensors_file.write(folder / file, shard, dtype, {"format": "pt"})
        files |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
