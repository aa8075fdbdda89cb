"""What a run records of its settings, so that it never resumes with other ones in silence."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runtime import distributed
from prompt_tuning.training.log import rate_at
from prompt_tuning.training.loss import Loss
from prompt_tuning.transformer import narrow
from prompt_tuning.transformer.paths import Params, flatten

_OPTIMIZER = "OPTIMIZER"
_RATE = "LEARNING_RATE"
_EACH_STEP = "LEARNING_RATE of each step"
FIRST_BATCH = "the first batch"  # a checksum, of a run whose data are a function
INITIAL = "initial values"
EXAMPLES = "training examples"  # of `TaskData.settings`: a checksum, or `STREAM`
STREAM = "a stream"
_STEPS = (1, 10, 100, 1_000, 10_000, 100_000)  # whose rates are shown
# Ends of the parts in whose steps schedules are compared, each at most a tenth longer than before.
_ENDS = sorted({math.ceil(1.1**power) for power in range(148)})
# Sizes of the gradients that optimizers are compared with, relative to each other; thresholds of
# clipping lie between two of them.
_SCALES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e-3)
_TOLERANCE = 1e-4  # float32 arithmetic of one device against another's
_CONTENT = "content of "  # begins the names of files' checksums
_SUMS = 4  # of a leaf's values with random signs


def of_training(
    tuned: TunedModel,
    learning_rate: optax.ScalarOrSchedule,
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation],
    loss: Loss,
    seed: int,
    total_steps: int = 1,
) -> dict[str, Any]:
    """Describes what determines the steps of a training as JSON values, by setting.

    What may change freely is left out: the number of steps, the periods, the number of parts of a
    batch and of devices. Schedules and optimizers are functions, and are described by their values:
    schedules at each of `total_steps`, optimizers by updates for gradients of many sizes.
    """
    return {
        **of_method(tuned),
        _RATE: _rates(learning_rate),
        _EACH_STEP: _parts(learning_rate, total_steps),
        _OPTIMIZER: [_name(optimizer), *_response(optimizer, tuned.trained)],
        **_fields(loss),
        **{f"backbone, {k}": v for k, v in tuned.model.config.of_model.items()},
        "DROPOUT_RATE": tuned.model.config.dropout_rate,
        "ACTIVATION_DTYPE": tuned.model.config.dtype,
        "BACKBONE_DTYPE": tuned.model.config.frozen_dtype,
        "PRODUCTS": "bfloat16" if narrow.rounds(tuned.model.config.products) else "float32",
        "RANDOM_SEED (dropout)": seed,
    }


def initial_values(split: ParamSplit, trained: Params) -> list[list[float]]:
    """Describes the values of a method's leaves by a few numbers each; empty for shapes alone.

    They differ with the seed and label words of `initialize`, and with the file that an initialiser
    reads. Leaves of the backbone are left out, since its fingerprint describes them.
    """
    described = []
    for path, leaf in sorted(flatten(trained).items()):
        if path in split.added and not isinstance(leaf, jax.ShapeDtypeStruct):
            values = np.asarray(distributed.to_host(leaf), np.float64).ravel()
            rng, numbers = np.random.default_rng(0), [np.linalg.norm(values)]
            for _ in range(_SUMS):
                positive = rng.integers(0, 2, values.size, np.int8).view(bool)
                numbers.append(2 * values[positive].sum() - values.sum())
            # Each is as large as a value, however many there are.
            described.append([float(f"{number / values.size**0.5:.6g}") for number in numbers])
    return described


def of_values(saved: Mapping[str, Any]) -> set[str]:
    """The settings that describe initial values, or what they are read from."""
    return {name for name in saved if name == INITIAL or name.startswith(_CONTENT)}


def are_alike(a: list[list[float]], b: list[list[float]]) -> bool:
    """Whether two results of `initial_values` are of the same values, up to rounding."""
    return len(a) == len(b) and all(
        np.allclose(one, other, rtol=0, atol=10 * _TOLERANCE * one[0])
        for one, other in zip(a, b, strict=True)
    )


def of_method(tuned: TunedModel) -> dict[str, Any]:
    """Describes the method, and what its leaves start from."""
    leaves = initial_values(tuned.split, tuned.trained)
    return {
        "METHOD": type(tuned.model.sites).__name__,
        **_fields(tuned.model.sites),
        **_contents(tuned.model.sites),
        **({INITIAL: leaves} if leaves else {}),
    }


def changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Lists the settings that both have and that differ, as "NAME = VALUE, now VALUE"."""
    current = json.loads(json.dumps(current))
    both, listed = (saved, current), []
    for name, value in current.items():
        if name not in saved or _same(name, saved[name], value):
            continue
        if name == _RATE and _same(_EACH_STEP, *(of.get(_EACH_STEP, ()) for of in both)):
            continue  # the rates differ after the last step only
        if name == _OPTIMIZER:
            listed.append(_change_of_optimizer(saved[name][0], value[0]))
        elif name == INITIAL:
            listed.append("other initial values (of a seed, of label words or in a file)")
        elif name == FIRST_BATCH:
            listed.append("batches that begin with other examples")
        elif name != _EACH_STEP:
            listed.append(f"{name} = {_shown(saved[name], value)}")
        elif not any(change.startswith(f"{_RATE} =") for change in listed):
            pairs = zip([0, *_ENDS], _ENDS, saved[name], value, strict=False)
            part = next((a + 1, b) for a, b, old, new in pairs if not _equal(old, new))
            steps = "step {0}" if part[0] == part[1] else "steps {0} to {1}"
            listed.append(f"{_RATE}, now another one in {steps.format(*part)}")
    return listed


def is_hidden(optimizer: Any) -> bool:
    """Whether an optimizer is a function whose settings cannot be read, such as a lambda."""
    while isinstance(optimizer, functools.partial):
        optimizer = optimizer.func
    return "<" in getattr(optimizer, "__qualname__", "")  # <lambda>, or <locals> of another one


def checksum(batch: Mapping[str, np.ndarray]) -> str:
    """A checksum of a batch's arrays, whatever its padding."""
    digest = hashlib.sha256()
    for name, array in sorted(batch.items()):
        rows = np.asarray(array)
        digest.update(f"{name} {len(rows)}".encode())
        for row in rows.reshape(len(rows), -1):
            digest.update(np.trim_zeros(row, "b").astype(np.float64).tobytes())
    return digest.hexdigest()[:16]


def _same(name: str, saved: Any, current: Any) -> bool:
    if name == _OPTIMIZER:
        return _same_optimizer(saved, current)
    if name == INITIAL:
        return are_alike(saved, current)
    if name == _EACH_STEP:  # the number of steps may change
        return bool(saved and current) and all(map(_equal, saved, current))
    return _equal(saved, current)


def _same_optimizer(saved: list[Any], current: list[Any]) -> bool:
    """Whether names, if both have one, and updates are the same; arguments are in the updates.

    Checkpoints of earlier versions have fewer updates.
    """
    names = {entry[0].partition("(")[0] for entry in (saved, current)} - {""}
    return len(names) < 2 and all(map(_equal, saved[1:], current[1:]))


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


def _contents(settings: Any) -> dict[str, str]:
    """Checksums of the files that parts of a method name as `path`, by their paths."""
    if isinstance(settings, list | tuple):
        parts = settings
    elif dataclasses.is_dataclass(settings):
        parts = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    else:
        return {}
    contents = {name: text for part in parts for name, text in _contents(part).items()}
    path = getattr(settings, "path", "")
    if isinstance(path, str) and path and (file := epath.Path(path).expanduser()).is_file():
        contents[f"{_CONTENT}{path}"] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return contents


def _rates(learning_rate: optax.ScalarOrSchedule) -> float | list[float]:
    # Schedules compute in float32, which writes 0.3 as 0.30000001192092896.
    rates = [float(f"{rate_at(learning_rate, step):.6g}") for step in _STEPS]
    return rates if len(set(rates)) > 1 else rates[0]


def _parts(learning_rate: optax.ScalarOrSchedule, total_steps: int) -> list[list[float]]:
    """What a schedule is in each part of a run: the mean, and the mean weighted by the place.

    Parts are whole, so that a run of more steps begins with the same ones.
    """
    ends = _ENDS[: 1 + next(i for i, end in enumerate(_ENDS) if end >= total_steps)]
    if callable(learning_rate):
        counts = jnp.arange(ends[-1])  # as `rate_at`
        rates = np.asarray(jax.jit(jax.vmap(learning_rate))(counts), np.float64)
    else:
        rates = np.full(ends[-1], float(learning_rate))
    parts = (rates[start:end] for start, end in itertools.pairwise([0, *ends]))
    return [
        [float(f"{np.mean(part * weight):.6g}") for weight in (1, np.linspace(1, 2, len(part)))]
        for part in parts
    ]


def _response(
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation], trained: Params
) -> list[float]:
    """Updates at the learning rate 1, for gradients of many sizes, small ones and large.

    A matrix takes the place of the first trained leaf; where leaves of several kinds are trained, a
    small matrix of each follows, since an optimizer may treat them differently.
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(trained)[0]]
    matrix = np.linspace(0.5, 1.5, 128 * 128, dtype=np.float32).reshape(128, 128)
    kinds = {re.sub(r"\d+", "", jax.tree_util.keystr(path)): path for path in reversed(paths)}
    values = _updates(optimizer(1.0), {paths[0]: matrix})
    if len(kinds) > 1:
        values += _updates(optimizer(1.0), dict.fromkeys(kinds.values(), matrix[:6, :8]))
    return values


def _updates(
    transform: optax.GradientTransformation, leaves: Mapping[Any, np.ndarray]
) -> list[float]:
    """Some entries of the updates of leaves, by path, one step after the other."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(_key(key), {})
        inner[_key(path[-1])] = leaf

    @jax.jit
    def update(gradient: Any, state: Any) -> Any:
        updates, state = transform.update(gradient, state, tree)
        return [
            matrix[jnp.array([0, 5]), jnp.array([0, 7])] for matrix in jax.tree.leaves(updates)
        ], state

    state = jax.jit(transform.init)(tree)
    first = jax.tree.map(lambda x: 2 - x, tree)
    gradients = [first, jax.tree.map(lambda x: 0.5 * x * x, tree)]
    gradients += [jax.tree.map(lambda x, scale=scale: scale * x, first) for scale in _SCALES]
    values = []
    for gradient in gradients:
        entries, state = update(gradient, state)
        values += entries
    return [float(f"{x:.6g}") for x in np.concatenate(jax.device_get(values))]


def _key(key: Any) -> str:
    return getattr(key, "key", str(key))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=1e-30)
    return a == b


def _shown(old: Any, new: Any) -> str:
    """Two values, "OLD, now NEW"; of long ones the part where they begin to differ."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (old, new)]
    same = next((i for i, pair in enumerate(zip(*texts, strict=False)) if len({*pair}) > 1), 0)
    start = same - 20 if same > 60 else 0
    parts = ("..." * (start > 0) + text[start:] for text in texts)
    return ", now ".join(part if len(part) <= 80 else f"{part[:77]}..." for part in parts)
