"""Checks of settings that several methods share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.sites import Place


def positive(setting: str, value: Any) -> None:
    """Checks that a setting is an integer of at least 1; raises ValueError otherwise."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{setting} = {value}: must be a positive whole number")


def freeze(method: Any, *names: str) -> None:
    """Turns lists, which gin gives, into tuples: a method must be hashable.

    Raises:
      ValueError: if one is no list, such as a text, whose letters would be taken.
    """
    for name in names:
        value = getattr(method, name)
        if value is not None:
            setting = f"{type(method).__name__}.{name}"
            object.__setattr__(method, name, as_tuple(setting, value))


def as_tuple(setting: str, value: Any) -> tuple:
    """Returns a list as a tuple; raises ValueError if it is a text or no list."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{setting} = {value!r}: must be a list, such as [{value!r}]")
    return tuple(value)


def words(setting: str, value: Any) -> tuple[str, ...]:
    """Returns a list of texts as a tuple; raises ValueError if it is anything else."""
    listed = as_tuple(setting, value)
    if others := [word for word in listed if not isinstance(word, str)]:
        raise ValueError(f"{setting} has {others[0]!r}: must be a list of texts")
    return listed


def projections(setting: str, chosen: Sequence[str], config: Config) -> None:
    """Checks that projections exist and at least one is chosen; raises ValueError otherwise."""
    unknown = [name for name in chosen if name not in config.projections]
    if unknown or not chosen:
        raise ValueError(
            f"{setting} = {tuple(chosen)}: choose from {', '.join(config.projections)}"
        )


def layers(setting: str, chosen: Sequence[int] | None, count: int, config: Config) -> None:
    """Checks a choice among `count` layers; None is all of them.

    Raises:
      ValueError: if the choice is empty, a layer does not exist, or layers are scanned.
    """
    if chosen is not None and config.scan_layers:
        raise ValueError(
            f"{setting} = {tuple(chosen)}: scanned layers are all alike; set SCAN_LAYERS = False"
        )
    if chosen is not None and (not chosen or not all(0 <= layer < count for layer in chosen)):
        raise ValueError(f"{setting} = {tuple(chosen)}: the layers are 0 to {count - 1}")


def floats(leaves: Mapping[str, Any]) -> None:
    """Checks that no leaf to merge into is int8; raises ValueError otherwise."""
    if any(np.asarray(leaf).dtype == object for leaf in leaves.values()):
        raise ValueError(
            "BACKBONE_DTYPE = 'int8': nothing merges into rounded weights; set BACKBONE_DTYPE = "
            "'float32'"
        )


def deepest(config: Config) -> int:
    """Number of layers of the deeper stack."""
    return max(config.stack("encoder").layers, config.stack("decoder").layers)


def has(chosen: Sequence[int] | None, place: Place) -> bool:
    return chosen is None or place.layer in chosen
