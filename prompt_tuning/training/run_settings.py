"""What a run records of its settings, so that it never resumes with other ones in silence."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.t5 import narrow
from prompt_tuning.t5.paths import Params
from prompt_tuning.training.log import rate_at
from prompt_tuning.training.loss import Loss

_OPTIMIZER = "OPTIMIZER"
_STEPS = (1, 10, 100, 1_000, 10_000, 100_000)  # at which schedules are compared
_TOLERANCE = 1e-4  # float32 arithmetic of one device against another's


def of_training(
    tuned: TunedModel,
    learning_rate: optax.ScalarOrSchedule,
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation],
    loss: Loss,
    seed: int,
) -> dict[str, Any]:
    """Describes what determines the steps of a training as JSON values, by setting.

    What may change freely is left out: the number of steps, the periods, the number of parts of a
    batch and of devices. Schedules and optimizers are functions, and are described by their values.
    """
    return {
        "METHOD": type(tuned.model.sites).__name__,
        **_fields(tuned.model.sites),
        "LEARNING_RATE": _rates(learning_rate),
        _OPTIMIZER: [_name(optimizer), *_response(optimizer, tuned.trained)],
        **_fields(loss),
        "DROPOUT_RATE": tuned.model.config.dropout_rate,
        "ACTIVATION_DTYPE": tuned.model.config.dtype,
        "BACKBONE_DTYPE": tuned.model.config.frozen_dtype,
        "PRODUCTS": "bfloat16" if narrow.rounds(tuned.model.config.products) else "float32",
        "RANDOM_SEED (dropout)": seed,
    }


def changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Lists the settings that both have and that differ, as "NAME = VALUE, now VALUE"."""
    current = json.loads(json.dumps(current))
    return [
        _change_of_optimizer(saved[name][0], value[0])
        if name == _OPTIMIZER
        else f"{name} = {_shown(saved[name])}, now {_shown(value)}"
        for name, value in current.items()
        if name in saved
        and not (_same_optimizer if name == _OPTIMIZER else _equal)(saved[name], value)
    ]


def _same_optimizer(saved: list[Any], current: list[Any]) -> bool:
    """Whether names, if both have one, and updates are the same; arguments are in the updates."""
    names = {entry[0].partition("(")[0] for entry in (saved, current)} - {""}
    return len(names) < 2 and _equal(saved[1:], current[1:])


def _change_of_optimizer(saved: str, current: str) -> str:
    """What differs; the numbers by which optimizers are compared would say nothing."""
    change = "" if saved != current else " with other hyperparameters; compare config.gin"
    return f"{_OPTIMIZER} = {saved or 'a function'}, now {current or 'a function'}{change}"


def _name(optimizer: Any) -> str:
    """The name of an optimizer, with the arguments of a `functools.partial`."""
    if not isinstance(optimizer, functools.partial):
        return getattr(optimizer, "__name__", "")
    arguments = ", ".join(f"{name}={value!r}" for name, value in optimizer.keywords.items())
    return re.sub(r" at 0x\w+", "", f"{_name(optimizer.func)}({arguments})")


def _fields(settings: Any) -> dict[str, str]:
    """The fields of a dataclass by name, without the addresses of functions."""
    kind = type(settings).__name__
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    values = {field.name: repr(getattr(settings, field.name)) for field in fields}
    return {f"{kind}.{name}": re.sub(r" at 0x\w+", "", text) for name, text in values.items()}


def _rates(learning_rate: optax.ScalarOrSchedule) -> float | list[float]:
    # Schedules compute in float32, which writes 0.3 as 0.30000001192092896.
    rates = [float(f"{rate_at(learning_rate, step):.6g}") for step in _STEPS]
    return rates if len(set(rates)) > 1 else rates[0]


def _response(
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation], trained: Params
) -> list[float]:
    """Two updates of a matrix with a fixed gradient, at the learning rate 1."""
    path = jax.tree_util.tree_flatten_with_path(trained)[0][0][0]
    leaf: Any = np.linspace(0.5, 1.5, 128 * 128, dtype=np.float32).reshape(128, 128)
    for key in reversed(path):
        leaf = {getattr(key, "key", str(key)): leaf}
    transform = optimizer(1.0)

    @jax.jit
    def updates(tree: Any) -> list[jax.Array]:
        state, gradient, values = transform.init(tree), jax.tree.map(lambda x: 2 - x, tree), []
        for _ in range(2):
            update, state = transform.update(gradient, state, tree)
            values += [matrix[[0, 5], [0, 7]] for matrix in jax.tree.leaves(update)]
            gradient = jax.tree.map(lambda x: 0.5 * x * x, tree)
        return values

    return [float(x) for x in np.concatenate(jax.device_get(updates(leaf)))]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=1e-30)
    return a == b


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
