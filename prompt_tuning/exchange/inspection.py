"""Identifies the checkpoint, prompt, adapter or run at a path, and lists its leaves.

Reads headers and indices, and the values of a prompt; never unpickles.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from prompt_tuning.analysis import neighbours
from prompt_tuning.checkpoint import backbone, card, prompts
from prompt_tuning.checkpoint.formats import huggingface, peft, safetensors_file, t5x_orbax
from prompt_tuning.errors import CheckpointError
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.runtime.files import is_remote
from prompt_tuning.transformer.vocabulary import SentencePiece

KINDS = (
    "a prompt, trained leaves, a backbone, a T5X checkpoint, a run, a PEFT adapter, or a Hugging "
    "Face T5"
)
_RUN_STEP = "checkpoint_"
_ORBAX = "_CHECKPOINT_METADATA"
_NUMPY_MAGIC = b"\x93NUMPY"
_NEIGHBOURS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What is stored at a path.

    Attributes:
      kind: the kind in words, such as "T5X checkpoint".
      leaves: arrays, or objects with their shape and dtype, by name.
      step: training step; None where the format does not record it.
      facts: further lines to print.
      prompt: function that reads the prompt [P, D]; None unless there is exactly one.
    """

    kind: str
    leaves: Mapping[str, Any]
    step: int | None = None
    facts: Sequence[str] = ()
    prompt: Callable[[], np.ndarray] | None = None


def contents_of(path: epath.PathLike) -> Contents:
    """Identifies what is stored at `path`; of arrays, only a `.npy` prompt is read.

    Raises:
      CheckpointError: if it is none of `KINDS`, or damaged.
    """
    path = epath.Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; check the path")
    if not is_remote(path):
        path = path.absolute()  # Orbax requires it
    contents = _folder(path) if path.is_dir() else _file(path)
    if contents is None:
        raise CheckpointError(f"{path}: not {KINDS}")
    return contents


def prompt_lines(prompt: np.ndarray) -> list[str]:
    """Reports the norms of a prompt's rows [P, D], and whether all values are finite."""
    norms = np.linalg.norm(prompt.astype(np.float64), axis=1)
    quantiles = (norms.min(), np.median(norms), norms.max())
    finite = int(np.isfinite(prompt).sum())
    return [
        "row norms: min {:.4g}, median {:.4g}, max {:.4g}".format(*quantiles),
        f"finite: {'all' if finite == prompt.size else f'{finite} of {prompt.size}'} values",
    ]


def lines(contents: Contents) -> list[str]:
    """Reports kind, step and leaves; `prompt_lines` reports the values of a prompt."""
    sizes = {
        name: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for name, leaf in contents.leaves.items()
    }
    width = max(map(len, sizes), default=0)
    report = [f"kind: {contents.kind}", *contents.facts]
    if contents.step is not None:
        report.append(f"step: {contents.step}")
    report.append(f"leaves: {len(sizes)}, {sum(sizes.values()):,} bytes")
    for name, leaf in contents.leaves.items():
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        report.append(f"  {name:{width}}  {np.dtype(leaf.dtype).name}  {shape}  {sizes[name]:,}")
    return report


def nearest_lines(
    prompt: np.ndarray, checkpoint: str, vocabulary: str | None, path: str
) -> list[str]:
    """Reports the three tokens nearest to each vector of a prompt.

    Args:
      prompt: prompt [P, D].
      checkpoint: path of the backbone whose embeddings are compared.
      vocabulary: SentencePiece model that names the tokens; None for their numbers.
      path: path of the prompt, which may have a card.

    Raises:
      CheckpointError, UserError: as `neighbours.check_backbone`.
    """
    table = backbone.load_leaf(checkpoint, huggingface.EMBEDDING)
    pieces = SentencePiece(vocabulary) if vocabulary else None
    neighbours.check_backbone(card.read(path), path, checkpoint, len(table), pieces)
    ids, cosines = neighbours.nearest(prompt, table, _NEIGHBOURS)
    name = token_names(vocabulary)
    report = ["nearest tokens, by cosine:"]
    for row, (tokens, values) in enumerate(zip(ids.tolist(), cosines, strict=True)):
        pairs = (f"{name(i)} {value:.3f}" for i, value in zip(tokens, values, strict=True))
        report.append(f"  {row}: {', '.join(pairs)}")
    return report


def token_names(vocabulary: str | None) -> Callable[[int], str]:
    """A function from a token to its piece; to its number where there is no vocabulary or piece."""
    if vocabulary is None:
        return str
    pieces = SentencePiece(vocabulary).pieces
    return lambda i: repr(pieces[i]) if i < len(pieces) else str(i)


def _folder(path: epath.Path) -> Contents | None:
    if peft.is_adapter(path):
        return _adapter(path)
    if t5x_orbax.is_folder(path):
        return _t5x(path, "T5X checkpoint, Orbax")
    if (path / _ORBAX).exists():
        return _run_step(path)
    if (path / "checkpoint").exists():
        return _t5x(path)
    if huggingface.is_folder(path):
        return Contents("Hugging Face checkpoint", huggingface.tensors_at(path))
    folders = {step.name.removeprefix(_RUN_STEP): step for step in path.glob(f"{_RUN_STEP}*")}
    steps = {int(name): folder for name, folder in folders.items() if name.isdecimal()}
    if not steps:
        return None
    newest = _folder(steps[max(steps)])
    if newest is None:
        return None
    fact = f"checkpoints: {len(steps)}; this is {steps[max(steps)].name}, the newest"
    return dataclasses.replace(newest, kind=f"run, {newest.kind}", facts=(fact, *newest.facts))


def _file(path: epath.Path) -> Contents | None:
    huggingface.refuse_pickle(path)
    if path.suffix == safetensors_file.SUFFIX:
        return _safetensors(path)
    with path.open("rb") as file:
        magic = file.read(len(_NUMPY_MAGIC))
    if magic == _NUMPY_MAGIC:
        return _numpy(path)
    return _t5x(path) if path.name == "checkpoint" else None


def _numpy(path: epath.Path) -> Contents:
    with path.open("rb") as file:
        try:
            array = np.load(file, allow_pickle=False)
        except Exception as error:  # NumPy's reader of headers raises many
            raise CheckpointError(f"{path}: not a whole .npy of numbers ({error})") from error
    is_prompt = array.ndim == 2 and array.size and np.issubdtype(array.dtype, np.floating)
    kind = "prompt (.npy)" if is_prompt else ".npy array; no prompt, which is [P, D] of floats"
    return Contents(kind, {"prompt": array}, prompt=(lambda: array) if is_prompt else None)


def _safetensors(path: epath.Path) -> Contents:
    leaves = safetensors_file.stored(path)
    if set(leaves) == {prompts.TENSOR}:
        return Contents("prompt (.safetensors)", leaves, prompt=_reader(leaves, prompts.TENSOR))
    if path.name == peft.WEIGHTS:
        return Contents("weights of a PEFT adapter; give its folder for more", leaves)
    if huggingface.uses_names(leaves):
        return Contents("weights of a Hugging Face checkpoint", leaves)
    if huggingface.EMBEDDING in leaves:
        return Contents("backbone (.safetensors)", leaves)
    return Contents("trained leaves", leaves, prompt=_reader(leaves, PROMPT_PATH))


def _reader(leaves: Mapping[str, Any], name: str) -> Callable[[], np.ndarray] | None:
    return (lambda: np.asarray(leaves[name], np.float32)) if name in leaves else None


def _adapter(path: epath.Path) -> Contents:
    config, leaves = peft.read_config(path), peft.stored(path)
    fields = ("task_type", "base_model_name_or_path", "peft_version")
    facts = [f"{field}: {config[field]}" for field in fields if config.get(field)]
    adapter_type = config.get("peft_type")
    many_prompts = adapter_type == peft.MULTITASK and config.get("num_tasks") != 1
    one_prompt = adapter_type in peft.PROMPTS and not many_prompts
    read = (lambda: peft.load_prompt(path)) if one_prompt else None
    return Contents(f"PEFT adapter, {adapter_type}", leaves, facts=facts, prompt=read)


def _t5x(path: epath.Path, kind: str = "T5X checkpoint") -> Contents:
    checkpoint = backbone.open_t5x(path)
    has_prompt = PROMPT_PATH in checkpoint.target_shapes
    read = (lambda: backbone.load_leaf(path, PROMPT_PATH)) if has_prompt else None
    return Contents(kind, checkpoint.leaves, checkpoint.step, prompt=read)


def _run_step(path: epath.Path) -> Contents:
    try:
        tree = ocp.checkpointables_metadata(path).metadata
    except Exception as error:  # Orbax's decoders raise their own
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path}: not a whole checkpoint of a run ({cause})") from error
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in flat}
    arrays = {name: leaf for name, leaf in names.items() if hasattr(leaf, "shape")}
    if not arrays:
        raise CheckpointError(f"{path}: an Orbax checkpoint without arrays; copy it again")
    number = path.name.removeprefix(_RUN_STEP)
    return Contents("Orbax checkpoint", arrays, int(number) if number.isdecimal() else None)
