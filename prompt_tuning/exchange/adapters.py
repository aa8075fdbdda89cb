"""python -m prompt_tuning.adapters: prompts and trained leaves to Hugging Face PEFT and back."""

import numpy as np
from etils import epath

from prompt_tuning.checkpoint import prompts
from prompt_tuning.checkpoint.formats import peft, safetensors_file
from prompt_tuning.checkpoint.trained import save as save_trained
from prompt_tuning.errors import UserError
from prompt_tuning.exchange import peft_layers
from prompt_tuning.methods import IA3, LoRA
from prompt_tuning.methods.prompt import PROMPT_PATH

FORMATS = ("peft", "prompt", "trained")


def read(
    path: str, task: int | None = None, lora_alpha: float | None = None
) -> tuple[np.ndarray | LoRA | IA3, dict[str, np.ndarray]]:
    """What a PEFT adapter, a prompt's file or a file of trained leaves holds.

    Args:
      path: the adapter's folder, or the file.
      task: of an adapter with a prompt for each task, from 0.
      lora_alpha: of trained leaves of LoRA, which do not hold it.

    Returns:
      The prompt [P, D] or the method, and the trained leaves by path.

    Raises:
      CheckpointError: if it cannot be read.
      UserError: if `task` or `lora_alpha` is missing or of no use.
    """
    place = epath.Path(path).expanduser()
    adapter = place.is_dir() and peft.is_adapter(place)
    is_prompt = not adapter or peft.read_config(place).get("peft_type") in peft.PROMPTS
    if task is not None and not (adapter and is_prompt):
        raise UserError(f"--task={task}: only a PEFT adapter of prompts has tasks; leave it out")
    stored = {}
    if not adapter and place.suffix == safetensors_file.SUFFIX:
        stored = safetensors_file.stored(place)
    lora = any("/lora_" in name for name in stored)
    if lora != (lora_alpha is not None):
        raise UserError(
            f"--lora_alpha={lora_alpha}: belongs to trained leaves of LoRA, which do not hold it; "
            + (f"give the LORA_ALPHA of {path}" if lora else "leave it out")
        )
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in stored.items()}
    if lora_alpha is not None:
        return peft_layers.lora_of(path, leaves, lora_alpha), leaves
    if any("/ia3_" in name for name in leaves):
        return peft_layers.ia3_of(path, leaves), leaves
    if adapter and not is_prompt:
        return peft_layers.load(place)
    if set(leaves) == {PROMPT_PATH}:
        prompt = leaves[PROMPT_PATH]
    else:
        prompt = peft.load_prompt(place, task) if adapter else prompts.load(place)
    return prompt, {PROMPT_PATH: prompt}


def write(
    path: str, form: str, held: np.ndarray | LoRA | IA3, leaves: dict[str, np.ndarray]
) -> None:
    """Writes what `read` returns in one of `FORMATS`.

    Raises:
      CheckpointError: if a folder exists, or leaves cannot be written.
      UserError: if the format has no place for it, or the path another suffix.
    """
    suffixes = {"peft": ("",), "prompt": prompts.SUFFIXES, "trained": (safetensors_file.SUFFIX,)}
    suffix = epath.Path(path).suffix
    if form != "peft" and suffix not in suffixes[form]:
        raise UserError(f"--to={path}: a {form} file ends in {' or '.join(suffixes[form])}")
    if form == "trained":
        save_trained(epath.Path(path).expanduser(), leaves)
    elif isinstance(held, np.ndarray):
        save = peft.save_prompt if form == "peft" else prompts.save
        save(epath.Path(path).expanduser(), held)
    elif form == "peft":
        peft_layers.save(path, held, leaves)
    else:
        raise UserError(f"--format={form}: not for {type(held).__name__}; write trained leaves")


def described(held: np.ndarray | LoRA | IA3) -> str:
    """What it is, with the settings of a run that takes its leaves."""
    if isinstance(held, np.ndarray):
        return f"{held.shape[0]} vectors, {held.shape[1]} wide"
    if isinstance(held, IA3):
        return "IA3"
    return (
        f"LORA_RANK = {held.rank}, LORA_ALPHA = {held.alpha}, "
        f"LORA_PROJECTIONS = {held.projections}, LORA_LAYERS = {held.layers}"
    )
