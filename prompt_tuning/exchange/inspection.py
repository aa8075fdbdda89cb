"""python -m prompt_tuning.inspect PATH: what a checkpoint, prompt, adapter or run holds.

Reads headers and indices, and of a prompt its values; never unpickles.
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
from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.checkpoint.formats import huggingface, peft, safetensors_file, t5x_orbax
from prompt_tuning.errors import CheckpointError
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.runtime.files import is_remote
from prompt_tuning.t5.vocabulary import SentencePiece

KINDS = (
    "a prompt, trained leaves, a backbone, a T5X checkpoint, a run, a PEFT adapter, or a Hugging "
    "Face T5"
)


_RUN_STEP = "checkpoint_"


_ORBAX = "_CHECKPOINT_METADATA"


_NUMPY_MAGIC = b"\x93NUMPY"


_NEAREST = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a path holds.

    Attributes:
      kind: in words.
      leaves: arrays or what has their shape and dtype, by name.
      step: of training; None where it is not kept.
      facts: other lines to print.
      prompt: reads the prompt [P, D]; None if there is none, or not one.
    """

    kind: str
    leaves: Mapping[str, Any]
    step: int | None = None
    facts: Sequence[str] = ()
    prompt: Callable[[], np.ndarray] | None = None


def found_at(path: epath.PathLike) -> Found:
    """What `path` holds; reads no array but a `.npy` prompt.

    Raises:
      CheckpointError: if it is nothing of `KINDS`, or damaged.
    """
    path = epath.Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; check the path")
    if not is_remote(path):
        path = path.absolute()  # of a relative one Orbax finds nothing
    found = _folder(path) if path.is_dir() else _file(path)
    if found is None:
        raise CheckpointError(f"{path}: not {KINDS}")
    return found


def prompt_lines(prompt: np.ndarray) -> list[str]:
    """Norms of a prompt's rows [P, D], and whether all values are finite."""
    norms = np.linalg.norm(prompt.astype(np.float64), axis=1)
    quantiles = (norms.min(), np.median(norms), norms.max())
    finite = int(np.isfinite(prompt).sum())
    return [
        "row norms: min {:.4g}, median {:.4g}, max {:.4g}".format(*quantiles),
        f"finite: {'all' if finite == prompt.size else f'{finite} of {prompt.size}'} values",
    ]


def lines(found: Found) -> list[str]:
    """The report on what was found, but for its prompt."""
    sizes = {
        name: math.prod(x.shape) * np.dtype(x.dtype).itemsize for name, x in found.leaves.items()
    }
    width = max(map(len, sizes), default=0)
    report = [f"kind: {found.kind}", *found.facts]
    if found.step is not None:
        report.append(f"step: {found.step}")
    report.append(f"leaves: {len(sizes)}, {sum(sizes.values()):,} bytes")
    for name, leaf in found.leaves.items():
        shape = " x ".join(map(str, leaf.shape)) or "scalar"
        report.append(f"  {name:{width}}  {np.dtype(leaf.dtype).name}  {shape}  {sizes[name]:,}")
    return report


def _folder(path: epath.Path) -> Found | None:
    if peft.is_adapter(path):
        return _adapter(path)
    if t5x_orbax.is_folder(path):
        return _t5x(path, "T5X checkpoint, Orbax")
    if (path / _ORBAX).exists():
        return _run_step(path)
    if (path / "checkpoint").exists():
        return _t5x(path)
    if huggingface.is_folder(path):
        return Found("Hugging Face checkpoint", huggingface.tensors_at(path))
    steps = {step.name.removeprefix(_RUN_STEP): step for step in path.glob(f"{_RUN_STEP}*")}
    steps = {int(name): step for name, step in steps.items() if name.isdecimal()}
    if not steps:
        return None
    newest = _folder(steps[max(steps)])
    if newest is None:
        return None
    fact = f"checkpoints: {len(steps)}; this is {steps[max(steps)].name}, the newest"
    return dataclasses.replace(newest, kind=f"run, {newest.kind}", facts=(fact, *newest.facts))


def _file(path: epath.Path) -> Found | None:
    huggingface.refuse_pickle(path)
    if path.suffix == safetensors_file.SUFFIX:
        return _safetensors(path)
    with path.open("rb") as file:
        magic = file.read(len(_NUMPY_MAGIC))
    if magic == _NUMPY_MAGIC:
        with path.open("rb") as file:
            try:
                prompt = np.load(file, allow_pickle=False)
            except Exception as error:  # NumPy's reader of headers raises many
                raise CheckpointError(f"{path}: not a whole .npy of numbers ({error})") from error
        whole = prompt.ndim == 2 and prompt.size and np.issubdtype(prompt.dtype, np.floating)
        kind = "prompt (.npy)" if whole else ".npy array; no prompt, which is [P, D] of floats"
        return Found(kind, {"prompt": prompt}, prompt=(lambda: prompt) if whole else None)
    return _t5x(path) if path.name == "checkpoint" else None


def _safetensors(path: epath.Path) -> Found:
    leaves = safetensors_file.stored(path)
    if set(leaves) == {prompts.TENSOR}:
        return Found("prompt (.safetensors)", leaves, prompt=_reader(leaves, prompts.TENSOR))
    if path.name == peft.WEIGHTS:
        return Found("weights of a PEFT adapter; give its folder for more", leaves)
    if huggingface.uses_names(leaves):
        return Found("weights of a Hugging Face checkpoint", leaves)
    if huggingface.EMBEDDING in leaves:
        return Found("backbone (.safetensors)", leaves)
    return Found("trained leaves", leaves, prompt=_reader(leaves, PROMPT_PATH))


def _adapter(path: epath.Path) -> Found:
    config, leaves = peft.read_config(path), peft.stored(path)
    shown = ("task_type", "base_model_name_or_path", "peft_version")
    facts = [f"{field}: {config[field]}" for field in shown if config.get(field)]
    kind = f"PEFT adapter, {config.get('peft_type')}"
    several = config.get("peft_type") == peft.MULTITASK and config.get("num_tasks") != 1
    readable = config.get("peft_type") in peft.PROMPTS and not several
    read = (lambda: peft.load_prompt(path)) if readable else None
    return Found(kind, leaves, facts=facts, prompt=read)


def _t5x(path: epath.Path, kind: str = "T5X checkpoint") -> Found:
    checkpoint = backbone.open_t5x(path)
    return Found(kind, checkpoint.leaves, checkpoint.step)


def _run_step(path: epath.Path) -> Found:
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
    return Found("Orbax checkpoint", arrays, int(number) if number.isdecimal() else None)


def _reader(leaves: Mapping[str, Any], name: str) -> Callable[[], np.ndarray] | None:
    return (lambda: np.asarray(leaves[name], np.float32)) if name in leaves else None


def words(vocabulary: str | None) -> Callable[[int], str]:
    """A token's name: its piece, or its number without a vocabulary or behind its end."""
    if vocabulary is None:
        return str
    pieces = SentencePiece(vocabulary).pieces
    return lambda i: repr(pieces[i]) if i < len(pieces) else str(i)


def _nearest_lines(prompt: np.ndarray, checkpoint: str, vocabulary: str | None) -> list[str]:
    table = backbone.load_leaf(checkpoint, huggingface.EMBEDDING)
    ids, cosines = neighbours.nearest(prompt, table, _NEAREST)
    word = words(vocabulary)
    report = ["nearest tokens, by cosine:"]
    for row, (near, values) in enumerate(zip(ids.tolist(), cosines, strict=True)):
        pairs = (f"{word(i)} {value:.3f}" for i, value in zip(near, values, strict=True))
        report.append(f"  {row}: {', '.join(pairs)}")
    return report
