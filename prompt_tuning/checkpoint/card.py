"""Reads and writes the card of a saved prompt: a JSON file that says what it was trained on."""

import dataclasses
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoint import prompts
from prompt_tuning.checkpoint.formats import safetensors_file
from prompt_tuning.errors import MOST, MOST_TOKENS, CheckpointError, UserError
from prompt_tuning.runtime.files import write_json

SUFFIX = ".card.json"
MAX_BYTES = 2**20
_TRAINED_WITH = "trained_with"  # the field that cards of earlier versions lack
_CHECKSUM = "checksum"  # likewise
_TEXT_FIELDS = "text_fields"  # within `trained_with`; of runs on files alone
# Those of `trained_with` that earlier versions do not write, and that are left out if empty.
_OPTIONAL = (_TEXT_FIELDS, "vocabulary", "model", "bare_inputs")


@dataclasses.dataclass(frozen=True)
class TrainedWith:
    """What answers depend on, besides the leaves of backbone and method.

    Attributes:
      settings: settings of the method by name (`Method.settings`), JSON values.
      labels: label words, in the order of the training; empty for text to text.
      tasks: names of the training tasks, in the order of a batch's `tasks`.
      lengths: most tokens of "inputs" and "targets", end tokens included.
      target_prefix: text before every target, such as a sentinel; "" for none.
      text_fields: fields that inputs are joined from, by task, of tasks of files.
      vocabulary: `transformer.vocabulary.fingerprint_of` its pieces; "" if unknown.
      model: `Config.of_model` of the backbone; empty if unknown.
      bare_inputs: tasks whose inputs have no end token.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Sequence[str] = ()
    tasks: Sequence[str] = ()
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    target_prefix: str = ""
    text_fields: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    vocabulary: str = ""
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bare_inputs: Sequence[str] = ()


_KINDS: dict[Any, str] = {
    int: f"a whole number from 0 to {MOST}",
    float: "a finite number",
    str: "a string",
    Mapping[str, float]: "an object of numbers",
    Mapping[str, int]: f"an object of whole numbers from 1 to {MOST_TOKENS}",
    Mapping[str, Any]: "an object",
    Mapping[str, Sequence[str]]: "an object of lists of strings",
    Sequence[str]: "a list of strings",
    TrainedWith | None: "an object",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """The origin of a prompt, or of a run's trained leaves.

    Attributes:
      backbone: path of the backbone as given to the run; "" for random weights.
      fingerprint: fingerprint of the backbone's weights; "" if unknown.
      d_model: width D of the backbone; 0 if unknown.
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
      trained_with: what answers depend on; None for a card of an earlier version.
      checksum: `checksum_of` the prompt or the leaves; "" for a card of an earlier version.
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
    trained_with: TrainedWith | None = None
    checksum: str = ""


def path_of(prompt: epath.PathLike) -> epath.Path:
    """Path of the card: `prompt_best.card.json` beside `prompt_best.npy` and `.safetensors`."""
    path = epath.Path(prompt).expanduser()
    name = path.stem if path.suffix in prompts.SUFFIXES else path.name
    return path.with_name(name + SUFFIX)


Values = np.ndarray | Mapping[str, np.ndarray]  # a prompt [P, D], or trained leaves by path


def checksum_of(values: Values) -> str:
    """16 hexadecimal digits of a prompt, or of trained leaves, as float32."""
    digest = hashlib.sha256()
    for name, leaf in _leaves(values):
        array = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{name} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def save(prompt: epath.PathLike, card: Card | None, values: Values | None = None) -> None:
    """Writes the card of the prompt, or the trained leaves, at path `prompt`.

    Args:
      prompt: path of the file that the card describes.
      card: the card; None removes that of an earlier file.
      values: what the file holds, whose length and checksum become the card's; None for what the
        card says.
    """
    if card is None:
        path_of(prompt).unlink(missing_ok=True)
        return
    if values is not None:
        length = 0 if isinstance(values, Mapping) else len(values)
        card = dataclasses.replace(card, length=length, checksum=checksum_of(values))
    fields = dataclasses.asdict(card)
    if not card.checksum:
        del fields[_CHECKSUM]
    if card.trained_with is None:
        del fields[_TRAINED_WITH]
    else:
        for name in _OPTIONAL:
            if not fields[_TRAINED_WITH][name]:
                del fields[_TRAINED_WITH][name]
    write_json(path_of(prompt), fields)


def read(prompt: epath.PathLike) -> Card | None:
    """Reads the card of the prompt at path `prompt`; None if there is none.

    Raises:
      CheckpointError: if the card is larger than 1 MiB, or not a JSON object with exactly the
        fields of `Card`, of which `trained_with` and `checksum` may be missing, as
        `check_values`, if the file is that of a prompt, or if there is none and one in its folder,
        whose own file is gone, was written for these values.
    """
    path = path_of(prompt)
    if not path.is_file():
        _check_is_not_renamed(epath.Path(prompt).expanduser())
        return None
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    card = parse(content, path)
    if card.length and epath.Path(prompt).expanduser().exists():
        check_values(card, prompt, prompts.load(prompt))
    return card


def _check_is_not_renamed(file: epath.Path) -> None:
    """Checks that no card of these values lies beside a file, or an adapter's folder, without one.

    A card whose own file is there is that file's: a copy beside it is a prompt without a card.
    """
    if not file.exists():
        return
    present = {each.name for each in file.parent.iterdir()}
    left = []
    for card in (file.parent / name for name in sorted(present) if name.endswith(SUFFIX)):
        own = card.name.removesuffix(SUFFIX)
        if present.isdisjoint((own, *(own + suffix for suffix in prompts.SUFFIXES))):
            left.append(card)
    if not left or (checksum := _checksum_in(file)) is None:
        return
    for card in left:
        if card.is_file() and checksum.encode() in card.read_bytes():
            raise CheckpointError(
                f"{file}: has no card, and {card.name} in its folder was written for these values; "
                f"rename it to {path_of(file).name}"
            )


def _checksum_in(file: epath.Path) -> str | None:
    """`checksum_of` what a file holds; None if it is no prompt, of which its reader will tell."""
    try:
        if file.suffix == safetensors_file.SUFFIX:
            stored = safetensors_file.stored(file)
            if prompts.TENSOR not in stored:
                return checksum_of({name: np.asarray(leaf) for name, leaf in stored.items()})
        return checksum_of(prompts.load(file))
    except CheckpointError:
        return None


def check_values(card: Card | None, path: epath.PathLike, values: Values) -> None:
    """Checks that values are those that a card was written for; passes if there is no card.

    Args:
      card: the card.
      path: what an error message begins with.
      values: content of the file.

    Raises:
      CheckpointError: if another prompt, or other leaves, took the place of the card's.
    """
    if card is None:
        return
    if card.length and card.length != len(values):
        differs = f"has {len(values)} vectors, and its card says {card.length}"
    elif card.checksum and card.checksum != checksum_of(values):
        differs = "has other values than those that its card was written for"
    else:
        return
    raise CheckpointError(
        f"{path}: {differs}; restore the file, or delete {path_of(path).name} if the file is right"
    )


def parse(content: str | bytes, path: epath.PathLike) -> Card:
    """The card that JSON says; `path` is what an error message begins with.

    Raises:
      CheckpointError: as `read`.
    """
    if len(content) > MAX_BYTES:
        raise _refused(path, f"is larger than {MAX_BYTES} bytes")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _refused(path, "is not a JSON object")
    _check_fields(path, fields, Card, {_TRAINED_WITH, _CHECKSUM} - fields.keys())
    if (trained_with := fields.get(_TRAINED_WITH)) is not None:
        _check_fields(path, trained_with, TrainedWith, {*_OPTIONAL} - trained_with.keys())
        names = ("labels", "tasks", "bare_inputs")
        lists: dict[str, Any] = {name: tuple(trained_with.get(name, ())) for name in names}
        fields_of_tasks = trained_with.get(_TEXT_FIELDS, {})
        lists[_TEXT_FIELDS] = {task: tuple(names) for task, names in fields_of_tasks.items()}
        fields[_TRAINED_WITH] = TrainedWith(**trained_with | lists)
    metric = {k: math.nan if v is None else v for k, v in fields["metric"].items()}
    return Card(**fields | {"metric": metric})


def read_for_answers(path: epath.PathLike) -> Card | None:
    """Reads the card of a file that is about to answer; warns if the card is of an earlier version.

    Raises:
      CheckpointError: as `read`.
    """
    card = read(path)
    if card is not None and card.trained_with is None:
        warnings.warn(
            f"{path}: its card (METHOD = {card.method}) is of an earlier version, and does not say "
            "with which settings of the method, labels, lengths and sentinel it was trained: they "
            "are not compared",
            stacklevel=2,
        )
    return card


def check(prompt: epath.PathLike, backbone: Callable[[], str]) -> None:
    """Checks that a prompt was trained on a backbone; passes if no card says on which.

    Args:
      prompt: path of the prompt.
      backbone: computes the backbone's fingerprint; called only if there is a card.

    Raises:
      CheckpointError: if the fingerprints differ, or as `read`.
    """
    check_backbone(read(prompt), prompt, backbone)


def check_backbone(card: Card | None, prompt: epath.PathLike, backbone: Callable[[], str]) -> None:
    """As `check`, for a card that has been read; `prompt` is what an error message begins with."""
    if card is None:
        return
    if not card.fingerprint:
        if card.backbone:
            warnings.warn(
                f"{prompt}: its card names the backbone {card.backbone!r} by its path alone; "
                "whether it is this one is not compared",
                stacklevel=2,
            )
        return
    if card.fingerprint != (fingerprint := backbone()):
        raise CheckpointError(
            f"{prompt}: was trained on the backbone {card.fingerprint} ({card.backbone!r}), but "
            f"this one is {fingerprint}; use that one, or set ALLOW_OTHER_BACKBONE = True"
        )


def check_prefix(prompt: epath.PathLike) -> None:
    """Checks that a prompt may stand in front of an input; a prompt without a card passes.

    Raises:
      UserError: if its card says that it was trained in another place.
      CheckpointError: as `read`.
    """
    check_is_prefix(read(prompt), prompt)


def check_is_prefix(card: Card | None, prompt: epath.PathLike) -> None:
    """As `check_prefix`, for a card that has been read."""
    if card is not None and card.placement not in ("", "prefix"):
        raise UserError(
            f"{prompt}: was trained as {card.placement!r}; only 'prefix' can be served, or "
            "written in another format"
        )


def warn_of_backbone(card: Card | None, prompt: epath.PathLike, backbone: str, flag: str) -> None:
    """Warns of a backbone at another path than that of the training, as it may be another one.

    For commands that read one leaf, of which there is no fingerprint.
    """
    if card is None or not card.backbone:
        return
    trained, given = (os.path.realpath(os.path.expanduser(p)) for p in (card.backbone, backbone))
    if trained != given and card.backbone != str(backbone):  # which may be in a bucket
        warnings.warn(
            f"{flag}={backbone}: {prompt} was trained on {card.backbone}; what follows is wrong "
            "unless that is the same backbone",
            stacklevel=2,
        )


def check_alike(prompt: epath.PathLike, other: epath.PathLike) -> None:
    """Checks that two prompts are of one backbone and placement; passes if a card is missing.

    Raises:
      UserError: names both prompts, and what differs.
      CheckpointError: as `read`.
    """
    card, other_card = read(prompt), read(other)
    if card is None or other_card is None:
        return
    for name in ("fingerprint", "placement"):
        ours, theirs = getattr(card, name), getattr(other_card, name)
        if ours and theirs and ours != theirs:
            what = "backbone" if name == "fingerprint" else name
            raise UserError(
                f"{other}: was trained with the {what} {theirs!r}, {prompt} with {ours!r}; "
                "their vectors cannot be compared"
            )
    if not (card.fingerprint and other_card.fingerprint) and card.backbone != other_card.backbone:
        warnings.warn(
            f"{other} is of the backbone {other_card.backbone!r}, {prompt} of {card.backbone!r}, "
            "and their cards do not say whether these are the same; if not, what follows is wrong",
            stacklevel=2,
        )


def check_model(
    trained: TrainedWith | None,
    path: epath.PathLike,
    *,
    vocabulary: str = "",
    model: Mapping[str, Any] = MappingProxyType({}),
    advice: str = "(VOCABULARY_FILE), or set ALLOW_OTHER_BACKBONE = True",
) -> None:
    """Checks that a file was trained with the same vocabulary and settings of the backbone.

    The fingerprint of a backbone says neither. What a card or the caller does not know is not
    compared.

    Args:
      trained: What the card says; None without a card.
      path: What an error message begins with.
      vocabulary: Fingerprint of the vocabulary that is to be used.
      model: `Config.of_model` of the backbone that is to be used.
      advice: How to name the vocabulary, or to go on without it.

    Raises:
      CheckpointError: names what differs.
    """
    if trained is None:
        return
    if vocabulary and trained.vocabulary and vocabulary != trained.vocabulary:
        raise CheckpointError(
            f"{path}: was trained with the vocabulary {trained.vocabulary}, but this one is "
            f"{vocabulary}, whose ids are other pieces; use the vocabulary of the training {advice}"
        )
    differing = [
        f"{name} = {trained.model[name]!r}, not {value!r}"
        for name, value in model.items()
        if name in trained.model and trained.model[name] != value
    ]
    if differing:
        raise CheckpointError(
            f"{path}: was trained on a backbone with {'; '.join(differing)}, which its weights do "
            "not say; use that configuration, or set ALLOW_OTHER_BACKBONE = True"
        )


def check_method(path: epath.PathLike, method: str, settings: Mapping[str, Any]) -> None:
    """Checks that leaves were trained by a method with these settings; passes without a card.

    Args:
      path: path of the trained leaves.
      method: class of the method that is to use them.
      settings: its `Method.settings`.

    Raises:
      CheckpointError: names the settings that differ, with both values.
    """
    card = read(path)
    if card is None or card.trained_with is None:
        return
    trained = {"METHOD": card.method, **card.trained_with.settings}
    current = json.loads(json.dumps({"METHOD": method, **settings}))
    differing = [
        f"{name} = {trained[name]!r}, not {value!r}"
        for name, value in current.items()
        if name in trained and trained[name] != value
    ]
    if differing:
        raise CheckpointError(
            f"{path}: was trained with {'; '.join(differing)}; use those settings, or set "
            "ALLOW_OTHER_SETTINGS = True"
        )


def _leaves(values: Values) -> list[tuple[str, np.ndarray]]:
    return sorted((values if isinstance(values, Mapping) else {prompts.TENSOR: values}).items())


def _check_fields(
    path: epath.PathLike, fields: Mapping[str, Any], cls: type, optional: Collection[str] = ()
) -> None:
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
    if wrong := sorted((fields.keys() ^ kinds.keys()) - {*optional}):
        problem = "has an unknown" if wrong[0] in fields else "lacks the"
        raise _refused(path, f"{problem} field {wrong[0][:100]!r}")
    for name in (name for name in kinds if name not in optional):
        if not _fits(fields[name], kinds[name]):
            raise _refused(path, f"the field {name!r} must be {_KINDS[kinds[name]]}")


def _fits(value: Any, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value <= MOST
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is str:
        return isinstance(value, str)
    if kind == Sequence[str]:
        return isinstance(value, list) and all(_fits(part, str) for part in value)
    if not isinstance(value, dict):
        return False
    if kind == Mapping[str, int]:
        return all(_fits(number, int) and 1 <= number <= MOST_TOKENS for number in value.values())
    if kind == Mapping[str, Sequence[str]]:
        return all(_fits(names, Sequence[str]) for names in value.values())
    if kind == Mapping[str, float]:
        # None and, of earlier versions, NaN: a metric that was not a number
        return all(number is None or type(number) in (int, float) for number in value.values())
    return True


def _refused(path: epath.PathLike, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: {reason}; restore the prompt's card, or delete it")
