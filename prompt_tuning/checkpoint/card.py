"""The card beside a saved prompt: what it was trained on, as a small JSON file."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from prompt_tuning.checkpoint import prompts
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import write_json

SUFFIX = ".card.json"
MAX_BYTES = 2**20
_KINDS = {int: "whole number from 0", float: "number", str: "string"}


@dataclasses.dataclass(frozen=True)
class Card:
    """Where a prompt, or a run's trained leaves, come from.

    Attributes:
      backbone: path of the weights, as the run was given it; "" for random ones.
      fingerprint: of these weights, see `fingerprint.of`.
      d_model: the backbone's width D.
      task: that was trained on.
      method: class that was trained.
      length: vectors of the prompt, P; 0 for trained leaves.
      placement: where the method puts a prompt, "prefix", ...; "" if it says nothing of it.
      initialisation: where the prompt started; "" likewise.
      optimizer: by name.
      learning_rate: of the last step.
      steps: trained for.
      metric: the validation at that step, by METHOD/METRIC; empty if there was none.
      version: of this package.
      config: the run's gin configuration; "" without gin.
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
    """The card's place: `prompt_best.card.json` beside `prompt_best.npy` and `.safetensors`."""
    path = epath.Path(prompt).expanduser()
    name = path.stem if path.suffix in prompts.SUFFIXES else path.name
    return path.with_name(name + SUFFIX)


def save(prompt: epath.PathLike, card: Card) -> None:
    """Writes the card of the prompt at a path."""
    write_json(path_of(prompt), dataclasses.asdict(card))


def read(prompt: epath.PathLike) -> Card | None:
    """The card of the prompt at a path; None if it has none.

    Raises:
      CheckpointError: if the card is no JSON object of exactly a card's fields, or above 1 MiB.
    """
    path = path_of(prompt)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _refused(path, f"is above {MAX_BYTES} bytes")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"is no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _refused(path, "is no JSON object")
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Card)}
    if wrong := sorted(fields.keys() ^ kinds.keys()):
        what = "has an unknown" if wrong[0] in fields else "lacks the"
        raise _refused(path, f"{what} field {wrong[0][:100]!r}")
    for name, kind in kinds.items():
        if not _fits(fields[name], kind):
            raise _refused(
                path, f"the field {name!r} is no {_KINDS.get(kind, 'object of numbers')}"
            )
    return Card(**fields)


def check(prompt: epath.PathLike, backbone: Callable[[], str]) -> None:
    """Checks that a prompt was trained on the backbone whose fingerprint a function computes; a
    prompt without card passes.

    Raises:
      CheckpointError: naming both, if it was trained on another; or as `read`.
    """
    card = read(prompt)
    if card is not None and card.fingerprint != (here := backbone()):
        raise CheckpointError(
            f"{prompt}: was trained on the backbone {card.fingerprint} ({card.backbone!r}), this "
            f"one is {here}; give that one, or set ALLOW_OTHER_BACKBONE = True"
        )


def _fits(value: Any, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and value >= 0
    if kind is float:
        return type(value) in (int, float)
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, dict) and all(_fits(number, float) for number in value.values())


def _refused(path: epath.Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: {reason}; restore the prompt's card, or delete it")
