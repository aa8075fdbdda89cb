"""Reads and writes the card of a saved prompt: a JSON file that says what it was trained on."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from prompt_tuning.checkpoint import prompts
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import write_json

SUFFIX = ".card.json"
MAX_BYTES = 2**20
_KINDS = {int: "a whole number from 0", float: "a number", str: "a string"}


@dataclasses.dataclass(frozen=True)
class Card:
    """The origin of a prompt, or of a run's trained leaves.

    Attributes:
      backbone: path of the backbone as given to the run; "" for random weights.
      fingerprint: fingerprint of the backbone's weights.
      d_model: width D of the backbone.
      task: task of the training.
      method: class of the tuning method.
      length: number P of the prompt's vectors; 0 for trained leaves.
      placement: placement of the prompt ("prefix", ...); "" if the method has none.
      initialisation: initialiser of the prompt; "" if the method has none.
      optimizer: name of the optimizer.
      learning_rate: learning rate of the last step.
      steps: number of training steps.
      metric: validation metrics after these steps, by METHOD/METRIC; empty without validation.
      version: version of this package.
      config: gin configuration of the run; "" without gin.
    """

    backbone: str
    fingerprint: str
    d_model: int
    task: str
    method: str
    length: int
    placement: str
    initialisation: str
    optimizer: str
    learning_rate: float
    steps: int
    metric: Mapping[str, float]
    version: str
    config: str


def path_of(prompt: epath.PathLike) -> epath.Path:
    """Path of the card: `prompt_best.card.json` beside `prompt_best.npy` and `.safetensors`."""
    path = epath.Path(prompt).expanduser()
    name = path.stem if path.suffix in prompts.SUFFIXES else path.name
    return path.with_name(name + SUFFIX)


def save(prompt: epath.PathLike, card: Card) -> None:
    """Writes the card of the prompt at path `prompt`."""
    write_json(path_of(prompt), dataclasses.asdict(card))


def read(prompt: epath.PathLike) -> Card | None:
    """Reads the card of the prompt at path `prompt`; None if there is none.

    Raises:
      CheckpointError: if the card is larger than 1 MiB, or not a JSON object with exactly the
        fields of `Card`.
    """
    path = path_of(prompt)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _refused(path, f"is larger than {MAX_BYTES} bytes")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _refused(path, "is not a JSON object")
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Card)}
    if wrong := sorted(fields.keys() ^ kinds.keys()):
        problem = "has an unknown" if wrong[0] in fields else "lacks the"
        raise _refused(path, f"{problem} field {wrong[0][:100]!r}")
    for name, kind in kinds.items():
        if not _fits(fields[name], kind):
            expected = _KINDS.get(kind, "an object of numbers")
            raise _refused(path, f"the field {name!r} must be {expected}")
    metric = {k: math.nan if v is None else v for k, v in fields["metric"].items()}
    return Card(**fields | {"metric": metric})


def check(prompt: epath.PathLike, backbone: Callable[[], str]) -> None:
    """Checks that a prompt was trained on a backbone; a prompt without a card passes.

    Args:
      prompt: path of the prompt.
      backbone: computes the backbone's fingerprint; called only if there is a card.

    Raises:
      CheckpointError: if the fingerprints differ, or as `read`.
    """
    card = read(prompt)
    if card is not None and card.fingerprint != (fingerprint := backbone()):
        raise CheckpointError(
            f"{prompt}: was trained on the backbone {card.fingerprint} ({card.backbone!r}), but "
            f"this one is {fingerprint}; use that one, or set ALLOW_OTHER_BACKBONE = True"
        )


def _fits(value: Any, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and value >= 0
    if kind is float:
        return type(value) in (int, float)
    if kind is str:
        return isinstance(value, str)
    numbers = value.values() if isinstance(value, dict) else [""]
    return all(number is None or _fits(number, float) for number in numbers)


def _refused(path: epath.Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: {reason}; restore the prompt's card, or delete it")
