"""Reads and writes backbones of each family in the format of Hugging Face transformers.

A checkpoint is a folder with `config.json` and `model.safetensors`, or several files and an index.
Matrices other than embeddings are stored transposed. The families know names and settings. `.bin`
files are pickles, which can run any code when they are read; they are refused.
"""

import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from prompt_tuning import families
from prompt_tuning.checkpoint.fit import Shape, check_fits
from prompt_tuning.checkpoint.formats import safetensors_file
from prompt_tuning.checkpoint.formats.safetensors_file import Array, Stored
from prompt_tuning.errors import CheckpointError
from prompt_tuning.families import CONFIG, Names, init_shapes
from prompt_tuning.runtime.files import folder_when_done
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import DECODER_EMBEDDING, EMBEDDING, flatten

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 << 30  # for years the default of transformers
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Fields of config.json that a run may choose, or that the leaves say.
_NOT_THE_MODELS = {"dropout_rate", "tie_word_embeddings", "scale_decoder_outputs"}
_STRAIGHT = (EMBEDDING, DECODER_EMBEDDING)  # not transposed


def name_in(names: Names, tensors: Mapping[str, Any], path: str) -> str:
    """The leaf's name among `tensors`; safetensors may keep any one of a table's copies."""
    copies = names.COPIES.get(path, ())
    return next((name for name in copies if name in tensors), names.their_name(path))


def names_of(tensors: Mapping[str, Any]) -> Names:
    """The names of the family that `tensors` are of, by how most of them begin."""

    def known(family: families.Family) -> int:
        return sum(name.startswith(family.huggingface.PREFIXES) for name in tensors)

    return max(families.FAMILIES, key=known).huggingface


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
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


def check_config(path: epath.Path, config: Config) -> None:
    """Checks that the `config.json` beside weights, if there is one, describes a configuration.

    Shapes of leaves do not say all, such as distances of relative positions, windows or norms.

    Args:
      path: checkpoint, as for `tensors_at`, or any other.
      config: configuration of the model that is to read it.

    Raises:
      CheckpointError: naming the fields that differ, with both values, or as `families.read`.
    """
    folder = path.parent if path.name in (SINGLE, INDEX) else path
    names, dtype = families.of(config).huggingface, np.dtype(np.float32)
    if not (folder / CONFIG).is_file():
        return
    if families.read_json(folder / CONFIG).get("model_type") not in names.MODEL_TYPES:
        return  # the names of the leaves tell families apart
    try:
        fields = _flat(names.config_fields(config, dtype))
    except CheckpointError:  # transformers has no name for what the model is
        return
    stated = _flat(names.config_fields(families.read(folder), dtype))
    differing = [
        f"{name} = {stated[name]!r}, where the model has {value!r}"
        for name, value in fields.items()
        if name in stated and stated[name] != value and name not in _NOT_THE_MODELS
    ]
    if differing:
        raise CheckpointError(
            f"{folder / CONFIG}: {'; '.join(differing)}; choose the model of the checkpoint "
            "(MODEL_PRESET or --model may be the folder itself)"
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
    theirs = names_of(tensors)
    try:
        names = {ours: name_in(theirs, tensors, ours) for ours in shapes}
    except KeyError:
        raise CheckpointError(
            f"{path}: holds a {theirs.MODEL_TYPES[0]}, which the model is not; choose the "
            "model of the checkpoint"
        ) from None
    wanted = {name: _transposed(ours, shapes[ours]) for ours, name in names.items()}
    tables = {name: ours for ours, copies in theirs.COPIES.items() for name in copies}
    tables |= theirs.TIED
    copies = tables.keys() & tensors.keys() - wanted.keys()
    sizes = {name: tensor.shape for name, tensor in tensors.items()}
    check_fits(sizes, wanted, path=path, ignore=lambda name: name in copies | theirs.UNUSED)
    for name in sorted(copies):
        table = names[tables[name]]
        if not np.array_equal(tensors[name], tensors[table]):
            raise CheckpointError(
                f"{path}: {name} must be equal to {table} in this model; choose the model of the "
                "checkpoint (T5 v1.1 has a separate lm_head)"
            )
    return {ours: leaf(ours, tensors[name]) for ours, name in names.items()}


def leaf(path: str, array: Array) -> Stored:
    """Converts the leaf at `path` between their layout and ours, in either direction; lazy."""
    shape = _transposed(path, array.shape)
    straight = path in _STRAIGHT
    read = (lambda: np.asarray(array)) if straight else (lambda: np.asarray(array).T)
    return Stored(shape, np.dtype(array.dtype), read)


def save(
    folder: epath.PathLike,
    leaves: Mapping[str, Array],
    config: Config,
    *,
    dtype: Any = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json` and weights as transformers does.

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
    names = families.of(config).huggingface
    fields = names.config_fields(config, dtype)
    named = {names.their_name(path): leaf(path, array) for path, array in leaves.items()}
    with folder_when_done(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        _write_shards(temporary, named, dtype, shard_bytes)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of nested objects by their path, as in "encoder.sliding_window"."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _transposed(path: str, shape: Shape) -> tuple[int, ...]:
    return tuple(shape) if path in _STRAIGHT else tuple(shape)[::-1]


def _refuse_pickles(folder: epath.Path) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        refuse_pickle(path)


def _weight_map(index: epath.Path) -> dict[str, str]:
    files = families.read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{index}: contains no weight_map; copy the checkpoint again")
    for file in files.values():
        if not isinstance(file, str) or "/" in file or not file.endswith(safetensors_file.SUFFIX):
            raise CheckpointError(
                f"{index}: {file!r} is not a {safetensors_file.SUFFIX} file beside it"
            )
    return files


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
