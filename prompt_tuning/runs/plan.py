"""A train step compiled ahead of time, without weights: bytes, operations, collectives."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags
from etils import epath

from prompt_tuning import sharding
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs.layout import GIB, possible_partitions
from prompt_tuning.runtime import files
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import T5, init_shapes
from prompt_tuning.t5.paths import flatten, unflatten
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import only_trained
from prompt_tuning.training.step import TrainState, make_train_step

JSON, DEVICES = "json", "devices"  # the command's flags
# Devices, and the memory of one (JAX counts the two cores of a TPU v3 chip apart).
MACHINES: Mapping[str, tuple[int, int]] = {
    "v3-32": (32, 16 * GIB),
    "v4-8": (4, 32 * GIB),
    "v5e-256": (256, 16 * GIB),
    "8xA100": (8, 80 * GIB),
    "1xH100": (1, 80 * GIB),
}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


def measure_step(
    *,
    config: T5Config,
    method: Method,
    layout: Layout,
    lengths: Mapping[str, int],
    batch_size: int,
    optimizer: Callable[[float], optax.GradientTransformation],
    loss: Loss,
    num_microbatches: int = 1,
) -> dict[str, Any]:
    """Compiles a step for all devices and prints what it needs on each of them.

    The numbers are those of XLA's compiler for CPUs: operations that an accelerator fuses may
    need less there. No weights are made.

    Args:
      config, method: the model.
      layout: of all devices.
      lengths: tokens of "inputs" and "targets".
      batch_size: rows of all devices together.
      optimizer, loss, num_microbatches: of the step.

    Returns:
      What `--json` is given. Bytes are of one device, but for `weight_bytes_total`.
    """
    sharding.check_batch_size(batch_size, layout, parts=num_microbatches)
    lowered = functools.partial(
        lowered_step,
        method=method,
        lengths=lengths,
        batch_size=batch_size,
        optimizer=optimizer,
        loss=loss,
        num_microbatches=num_microbatches,
    )
    step, weights = lowered(config, layout=layout)
    compiled = step.compile()
    # The compiler counts what is in a loop once.
    unrolled, _ = lowered(dataclasses.replace(config, scan_layers=False), layout=layout)
    mesh, specs = layout.mesh, [tuple(leaf.sharding.spec) for leaf in weights]
    found = {
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "weight_bytes_total": sum(leaf.size * leaf.dtype.itemsize for leaf in weights),
        "weight_bytes_per_device": _bytes_here(weights),
        "weight_shards": math.prod(mesh.shape[axis] for axis in set(jax.tree.leaves(specs))),
        **_memory(compiled),
        "flops_per_device": unrolled.cost_analysis()["flops"] / mesh.size,
        "collectives": collectives(compiled.as_text()),
        "machines": {
            name: fit(lowered, config, batch_size // num_microbatches, *machine)
            for name, machine in MACHINES.items()
            if machine[0] <= jax.device_count()
        },
    }
    print(shown(found))
    if path := flags.FLAGS[JSON].value:
        files.write_json(epath.Path(path).expanduser(), found)
    return found


def devices() -> list[jax.Device]:
    """As many of the simulated ones as `--devices` says."""
    return jax.devices()[: flags.FLAGS[DEVICES].value]


def lowered_step(
    config: T5Config,
    *,
    method: Method,
    layout: Layout,
    lengths: Mapping[str, int],
    batch_size: int,
    optimizer: Callable[[float], optax.GradientTransformation],
    loss: Loss,
    num_microbatches: int,
) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """The traced step, and the shapes of all leaves with their shardings."""
    split = ParamSplit.of(config, method)
    shardings = flatten(sharding.shardings_of(init_shapes(config, method), layout))
    weights = {
        path: sharding.with_sharding(leaf, shardings[path]) for path, leaf in split.shapes.items()
    }
    trained, frozen = split.split(unflatten(weights))
    transform = only_trained(optimizer(0.3), split)
    slots = jax.eval_shape(transform.init, trained)
    shaped: Any = TrainState  # of shapes in place of arrays
    state = shaped(
        jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.everywhere),
        trained,
        jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            slots,
            sharding.like_trained(slots, trained, layout),
        ),
    )
    features = {
        "encoder_input_tokens": "inputs",
        "decoder_input_tokens": "targets",
        "decoder_target_tokens": "targets",
        "decoder_loss_weights": "targets",
    }
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, lengths[kind]), jnp.int32, sharding=layout.rows)
        for name, kind in features.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0)) if config.dropout_rate else None
    step = make_train_step(T5(config, method), split, transform, loss, num_microbatches)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    out = (places, layout.everywhere)
    with sharding.on(layout):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
        return jitted.lower(state, frozen, batch, key), jax.tree.leaves(weights)


def collectives(hlo: str) -> dict[str, int]:
    """How many of each kind of collective operation compiled text holds."""
    kinds = "|".join(COLLECTIVES)
    return dict(collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", hlo)))


def fit(
    lowered: Callable[..., tuple[Any, Sequence[jax.ShapeDtypeStruct]]],
    config: T5Config,
    rows: int,
    devices: int,
    memory: int,
) -> dict[str, Any] | None:
    """The fewest partitions, of those that leave half the memory to activations, with which the
    step fits a machine; where none does, the most. None if the rows do not divide over it.

    Args:
      lowered: from the configuration and `layout` to what `lowered_step` returns.
      config: of the backbone.
      rows: that all devices compute at a time.
      devices: of the machine.
      memory: bytes of each.
    """
    possible = [n for n in possible_partitions(config, devices) if rows % (devices // n) == 0]
    found = None
    for partitions in possible:
        layout = sharding.layout(partitions, devices=jax.devices()[:devices])
        step, weights = lowered(config, layout=layout)
        if _bytes_here(weights) > memory / 2 and partitions != possible[-1]:
            continue
        needed = _memory(step.compile())["bytes_per_device"]
        fits = needed <= memory
        found = {"fits": fits, "num_partitions": partitions, "bytes_per_device": needed}
        if fits:
            break
    return found and found | {"memory": memory}


def _bytes_here(weights: Sequence[jax.ShapeDtypeStruct]) -> int:
    """Of one device."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in weights)
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def _memory(compiled: Any) -> dict[str, int]:
    """Bytes of one device."""
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return {
        "argument_bytes": arguments,
        "temporary_bytes": temporaries,
        "bytes_per_device": arguments + temporaries,
    }


def shown(found: Mapping[str, Any]) -> str:
    """The plan as text."""
    lines = [f"mesh {found['mesh']}, {found['devices']} devices"]
    for name in ("weight_bytes_total", "weight_bytes_per_device", "temporary_bytes"):
        lines.append(f"{name:24} {found[name] / GIB:12.3f} GiB")
    lines.append(f"{'flops_per_device':24} {found['flops_per_device']:12.4g}")
    calls = ", ".join(f"{count} {kind}" for kind, count in found["collectives"].items())
    lines.append(f"{'collectives':24} {calls or 'none'}")
    for name, machine in found["machines"].items():
        lines.append(f"{name:24} {_answer(machine)}")
    lines.append(
        "less memory: ACTIVATION_DTYPE = 'bfloat16', REMAT = 'full', NUM_MICROBATCHES = 2, ..."
    )
    return "\n".join(lines)


def _answer(machine: Mapping[str, Any] | None) -> str:
    if machine is None:
        return "BATCH_SIZE does not divide over it"
    return (
        f"{'fits' if machine['fits'] else 'does not fit'}: {machine['bytes_per_device'] / GIB:.1f} "
        f"of {machine['memory'] / GIB:.0f} GiB, NUM_PARTITIONS = {machine['num_partitions']}"
    )
