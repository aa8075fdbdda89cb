"""Reads and writes prompts and trained leaves, as Hugging Face PEFT adapters or as our files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning import __version__
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.checkpoint.card import Card, TrainedWith
from prompt_tuning.checkpoint.formats import peft, safetensors_file
from prompt_tuning.checkpoint.trained import save as save_trained
from prompt_tuning.errors import UserError, real_number
from prompt_tuning.exchange import peft_layers
from prompt_tuning.methods import IA3, LoRA
from prompt_tuning.methods.prompt import PROMPT_PATH

SUFFIXES = {
    "peft": ("",),
    "prompt": prompts.SUFFIXES,
    "trained": (safetensors_file.SUFFIX,),
}
FORMATS = tuple(SUFFIXES)


@dataclasses.dataclass(frozen=True, eq=False)
class Adaptation:
    """What a run trained.

    Attributes:
      leaves: trained leaves by path, float32.
      method: LoRA or IA3; None for a prompt, the leaf at `PROMPT_PATH`.
      card: how the leaves were trained; None if no card says it.
    """

    leaves: dict[str, np.ndarray]
    method: LoRA | IA3 | None = None
    card: Card | None = None

    @property
    def prompt(self) -> np.ndarray:
        """The prompt [P, D], if there is no method."""
        return self.leaves[PROMPT_PATH]

    def __str__(self) -> str:
        """What it is, with the settings of a run that takes its leaves."""
        if self.method is None:
            return f"{self.prompt.shape[0]} vectors, {self.prompt.shape[1]} wide"
        if isinstance(self.method, IA3):
            return "IA3"
        lora = self.method
        return (
            f"LORA_RANK = {lora.rank}, LORA_ALPHA = {lora.alpha}, "
            f"LORA_PROJECTIONS = {lora.projections}, LORA_LAYERS = {lora.layers}"
        )


def read(path: str, task: int | None = None, lora_alpha: float | None = None) -> Adaptation:
    """Reads a PEFT adapter, a prompt file or a file of trained leaves.

    Args:
      path: the adapter's folder, or the file.
      task: number, from 0, of the task in an adapter with one prompt per task.
      lora_alpha: alpha of LoRA's trained leaves, which do not contain it.

    Raises:
      CheckpointError: if it cannot be read.
      UserError: if `task` or `lora_alpha` is missing or does not apply, or if the card names
        another alpha or says that a prompt is not a prefix.
    """
    location = epath.Path(path).expanduser()
    adapter = location.is_dir() and peft.is_adapter(location)
    is_prompt = not adapter or peft.read_config(location).get("peft_type") in peft.PROMPTS
    if task is not None and not (adapter and is_prompt):
        raise UserError(f"--task={task}: only a PEFT adapter of prompts has tasks; leave it out")
    stored = {}
    if not adapter and location.suffix == safetensors_file.SUFFIX:
        stored = safetensors_file.stored(location)
    lora = any("/lora_" in name for name in stored)
    if lora != (lora_alpha is not None):
        raise UserError(
            f"--lora_alpha={lora_alpha}: belongs to trained leaves of LoRA, which do not contain "
            "it; " + (f"give the LORA_ALPHA of {path}" if lora else "leave it out")
        )
    if lora and not real_number("--lora_alpha", lora_alpha):
        raise UserError("--lora_alpha=0: LoRA would add nothing; give the LORA_ALPHA of training")
    saved = None if task is not None else card.read(location)
    if not adapter:
        _check_card(location, saved, lora_alpha)
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in stored.items()}
    if leaves and not (saved and saved.length):
        card.check_values(saved, path, leaves)
    if lora_alpha is not None:
        in_every_layer = _settings_of(saved).get("LoRA.layers", ()) is None
        lora_method = peft_layers.lora_of(path, leaves, lora_alpha, in_every_layer)
        return Adaptation(leaves, lora_method, saved)
    if any("/ia3_" in name for name in leaves):
        return Adaptation(leaves, peft_layers.ia3_of(path, leaves), saved)
    if adapter and not is_prompt:
        method, leaves = peft_layers.load(location)
        card.check_values(saved, path, leaves)
        return Adaptation(leaves, method, saved)
    if set(leaves) == {PROMPT_PATH}:
        return Adaptation(leaves, card=saved)
    prompt = peft.load_prompt(location, task) if adapter else prompts.load(location)
    return Adaptation({PROMPT_PATH: prompt}, card=saved)


def _check_is_t5(saved: Card | None, path: str) -> None:
    """Checks that leaves are of a T5, if a card says of what: others have other names in PEFT."""
    model = saved.trained_with.model if saved and saved.trained_with else {}
    if model and "relative_buckets" not in model:
        raise UserError(
            f"--to={path}: PEFT gets leaves of LoRA and IA3 under the names of a T5, and "
            "these were trained on another family; use --format=trained"
        )


def _settings_of(saved: Card | None) -> Mapping[str, Any]:
    return saved.trained_with.settings if saved and saved.trained_with else {}


def _check_card(path: epath.Path, saved: Card | None, lora_alpha: float | None) -> None:
    card.check_prefix(path)
    alpha = _settings_of(saved).get("LoRA.alpha", lora_alpha)
    if lora_alpha is not None and alpha != lora_alpha:
        raise UserError(f"--lora_alpha={lora_alpha}: {path} was trained with {alpha}; give that")


def write(path: str, form: str, adaptation: Adaptation) -> None:
    """Writes an adaptation in one of `FORMATS`, and its card beside it.

    Raises:
      CheckpointError: if the folder exists, or leaves cannot be written.
      UserError: if the format cannot represent it, or the path has another suffix.
    """
    location = epath.Path(path).expanduser()
    if form != "peft" and location.suffix not in SUFFIXES[form]:
        endings = " or ".join(SUFFIXES[form])
        raise UserError(f"--to={path}: the name of a {form} file must end in {endings}")
    if form == "trained":
        save_trained(location, adaptation.leaves)
    elif adaptation.method is None:
        save = peft.save_prompt if form == "peft" else prompts.save
        save(location, adaptation.prompt)
    elif form == "peft":
        _check_is_t5(adaptation.card, path)
        peft_layers.save(path, adaptation.method, adaptation.leaves)
    else:
        name = type(adaptation.method).__name__
        raise UserError(f"--format={form}: {name} has no prompt; use --format=trained or peft")
    is_prompt = adaptation.method is None and form != "trained"
    saved = adaptation.card
    if saved is None and form == "trained" and isinstance(adaptation.method, LoRA):
        saved = _card_of_lora(adaptation.method)
    card.save(location, saved, adaptation.prompt if is_prompt else adaptation.leaves)


def _card_of_lora(lora: LoRA) -> Card:
    """A card with the settings that leaves of unknown origin need besides their shapes."""
    settings = {name: lora.settings[name] for name in ("LoRA.alpha", "LoRA.layers")}
    return Card(
        backbone="",
        fingerprint="",
        d_model=0,
        task="",
        method=type(lora).__name__,
        length=0,
        placement="",
        initialisation="",
        optimizer="",
        learning_rate=0.0,
        steps=0,
        metric={},
        version=__version__,
        config="",
        trained_with=TrainedWith(settings=settings),
    )
