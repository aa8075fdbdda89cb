"""Checks of the settings that several methods have."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.sites import Place


def positive(setting: str, value: int) -> None:
    """Raises ValueError unless the setting is a whole number from 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{setting} = {value}: must be a positive whole number")


def freeze(method: Any, *names: str) -> None:
    """Turns gin's lists into tuples: a method must be hashable."""
    for name in names:
        if getattr(method, name) is not None:
            object.__setattr__(method, name, tuple(getattr(method, name)))


def projections(setting: str, chosen: Sequence[str], config: T5Config) -> None:
    """Raises ValueError unless the backbone has the projections, and there is one."""
    unknown = [name for name in chosen if name not in config.projections]
    if unknown or not chosen:
        raise ValueError(
            f"{setting} = {tuple(chosen)}: choose from {', '.join(config.projections)}"
        )


def layers(setting: str, chosen: Sequence[int] | None, count: int, config: T5Config) -> None:
    """Raises ValueError unless there is a layer, each is one of `count`, and layers differ."""
    if chosen is not None and config.scan_layers:
        raise ValueError(
            f"{setting} = {tuple(chosen)}: scanned layers are alike; set SCAN_LAYERS = False"
        )
    if chosen is not None and (not chosen or not all(0 <= layer < count for layer in chosen)):
        raise ValueError(f"{setting} = {tuple(chosen)}: the layers are 0 to {count - 1}")


def floats(leaves: Mapping[str, Any]) -> None:
    """Raises ValueError if a leaf that is to be merged into is in int8."""
    if any(np.asarray(leaf).dtype == object for leaf in leaves.values()):
        raise ValueError(
            "BACKBONE_DTYPE = 'int8': nothing merges into rounded weights; load the backbone in "
            "'float32'"
        )


def deepest(config: T5Config) -> int:
    """Layers of the deeper of the two stacks."""
    return max(config.num_encoder_layers, config.num_decoder_layers)


def has(chosen: Sequence[int] | None, place: Place) -> bool:
    return chosen is None or place.layer in chosen
