"""Prompts of many tasks as files in one folder."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.checkpoint.card import Card, TrainedWith
from prompt_tuning.checkpoint.formats import peft
from prompt_tuning.checkpoint.trained_data import plain_name
from prompt_tuning.data.unicode_form import composed, shown_beside
from prompt_tuning.errors import UserError

LABELS_FILE = "labels.json"  # in a folder of prompts


def read(path: epath.PathLike, fingerprint: Callable[[], str] | None = None) -> np.ndarray:
    """Reads a prompt [P, D] from a file or an adapter's folder, and checks its card.

    Args:
      path: See `checkpoint.prompts.load`.
      fingerprint: Function that returns the backbone's fingerprint, called if there is a card;
        None to accept a prompt of any backbone.

    Raises:
      CheckpointError: as `prompts.load` and `card.check`.
      UserError: if the card says that the prompt is not a prefix.
    """
    prompt = prompts.load(path)
    if fingerprint is not None:
        card.check(path, fingerprint)
    card.check_prefix(path)
    return prompt


# What must be the same for prompts that answer together, of their cards; not all cards have it all.
_MUST_AGREE: Mapping[str, Callable[[TrainedWith], Any]] = {
    "tasks": lambda training: list(map(plain_name, training.tasks)),
    "input length": lambda training: training.lengths.get("inputs"),
    "target prefix": lambda training: training.target_prefix,
    "label words": lambda training: sorted(training.labels),
    "text fields": lambda training: [list(names) for names in training.text_fields.values()],
    "vocabulary": lambda training: training.vocabulary,
    "backbone": lambda training: dict(training.model),
}
_OPTIONAL = ("label words", "text fields", "vocabulary", "backbone")


def trained_with(
    paths: Sequence[Any], setting: str, *, takes_sentinel: bool = False
) -> TrainedWith | None:
    """What prompts that answer together were trained with; None if no card says it.

    Args:
      paths: paths of prompts; what has no card (an array, None) is left out.
      setting: what the error message begins with.
      takes_sentinel: whether what has no card was trained with the sentinel of the others.

    Raises:
      UserError: if two are the same, two were trained on different tasks, label words or text
        fields, with different input lengths or target prefixes, or some with a target prefix and
        others have no card that says so.
    """
    are_files = [isinstance(path, str | os.PathLike) for path in paths]
    names = [
        str(path) if is_file else _kind(path)
        for path, is_file in zip(paths, are_files, strict=True)
    ]
    cards = [
        card.read_for_answers(path) if is_file else None
        for path, is_file in zip(paths, are_files, strict=True)
    ]

    def arrays() -> list[np.ndarray]:
        return [
            prompts.load(path) if is_file else np.zeros((0, 0)) if path is None else path
            for path, is_file in zip(paths, are_files, strict=True)
        ]

    return agreed(names, cards, arrays, setting, takes_sentinel=takes_sentinel)


def agreed(
    names: Sequence[str],
    cards: Sequence[Card | None],
    arrays: Callable[[], Sequence[np.ndarray]],
    setting: str,
    *,
    takes_sentinel: bool = False,
) -> TrainedWith | None:
    """As `trained_with`, for cards that have been read.

    Args:
      names: what error messages call the prompts.
      cards: their cards; None for those without one.
      arrays: function that returns them, called if there are several.
      setting, takes_sentinel: as in `trained_with`.
    """
    first, training, without_card = "", None, []
    for prompt, prompt_card in zip(names, cards, strict=True):
        if prompt_card is None or (other := prompt_card.trained_with) is None:
            without_card.append(prompt)
            continue
        if training is None:
            first, training = prompt, other
        for name, of in _MUST_AGREE.items():
            a, b = of(training), of(other)
            if a != b and ((a and b) or name not in _OPTIONAL):
                raise UserError(
                    f"{setting}: {first} was trained with the {name} {a!r}, {prompt} with {b!r}; "
                    "prompts that answer together must agree"
                )
    if training and training.target_prefix and without_card and not takes_sentinel:
        raise UserError(
            f"{setting}: {first} was trained with the target prefix {training.target_prefix!r}, "
            f"and no card says so of {without_card[0]}; leave it out, or give target_prefix if it "
            "was too (SENTINEL_TARGETS = True in a command)"
        )
    if len(names) > 1:
        _check_distinct(names, arrays(), setting)
    return training


def _check_distinct(names: Sequence[str], arrays: Sequence[np.ndarray], setting: str) -> None:
    """Raises UserError if two are one prompt, such as a run's .npy and its .safetensors."""
    for i, array in enumerate(arrays):
        for j, other in enumerate(arrays[:i]):
            if prompts.are_same(array, other):
                both = f"{names[j]} and {names[i]}"
                if names[j] == names[i]:
                    both = f"numbers {j + 1} and {i + 1}"
                raise UserError(
                    f"{setting}: {both} are the same prompt, whose vote would count twice, or "
                    "differ by no more than rounding; leave one out"
                )


def _kind(prompt: Any) -> str:
    return "None, the backbone alone" if prompt is None else "an array"


def files(folder: epath.PathLike) -> dict[str, list[epath.Path]]:
    """Lists the prompt files of each task in a folder.

    `TASK.npy`, `TASK.safetensors` or an adapter's folder `TASK/` is the prompt of a task; any other
    folder `TASK/` contains the prompts of an ensemble. Names that begin with a dot are ignored.

    Raises:
      UserError: if the folder does not exist, has no prompts, or has two prompts of one name.
    """
    folder = epath.Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of prompts")
    by_task: dict[str, list[epath.Path]] = {}
    for path in sorted(folder.iterdir()):
        paths = [path] if _is_prompt(path) else _prompts_in(path)
        if not paths or path.name.startswith("."):
            continue
        task = composed(path.name if path.is_dir() else path.stem)
        if task in by_task:
            raise UserError(f"{folder}: two prompts are named {task!r}; rename or delete one")
        by_task[task] = paths
    if not by_task:
        raise UserError(f"{folder}: contains no prompts: no .npy, .safetensors or adapter folder")
    return by_task


def labels(folder: epath.PathLike) -> dict[str, list[str]]:
    """Reads the label words by task from the folder's `labels.json`; empty without that file.

    Raises:
      UserError: if it is not a JSON object of lists, or names a task twice or without a prompt.
    """
    path = epath.Path(folder).expanduser() / LABELS_FILE
    if not path.is_file():
        return {}
    try:
        words = json.loads(path.read_text(), object_pairs_hook=_each_once)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(words, dict) or not all(isinstance(value, list) for value in words.values()):
        raise UserError(f"{path}: must be a JSON object with a list of label words per task")
    known = files(folder)
    if unknown := sorted(task for task in words if composed(task) not in known):
        raise UserError(f"{path}: no prompt for the task {shown_beside(unknown[0], known)}")
    return {composed(task): value for task, value in words.items()}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON file, which would keep the last of two lists of one name."""
    names = [composed(name) for name, _ in pairs]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"has two lists for the task {twice[0]!r}; delete one")
    return dict(pairs)


def _prompts_in(path: epath.Path) -> list[epath.Path]:
    return list(filter(_is_prompt, sorted(path.iterdir()))) if path.is_dir() else []


def _is_prompt(path: epath.Path) -> bool:
    return path.suffix in prompts.SUFFIXES or (path.is_dir() and peft.is_adapter(path))
