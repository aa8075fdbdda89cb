"""A train step compiled ahead of time and without weights: its bytes, operations, collectives."""

import collections
import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from prompt_tuning import families, sharding
from prompt_tuning.families import init_shapes
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs.layout import GIB, possible_partitions
from prompt_tuning.runtime import files
from prompt_tuning.sharding import Layout
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import only_trained
from prompt_tuning.training.step import TrainState, make_train_step
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import flatten, unflatten

# Number of devices and bytes of each; JAX counts the two cores of a TPU v3 chip as two devices.
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
    config: Config,
    method: Method,
    layout: Layout,
    lengths: Mapping[str, int],
    batch_size: int,
    optimizer: Callable[[float], optax.GradientTransformation],
    loss: Loss,
    num_microbatches: int = 1,
    json_file: str = "",
) -> dict[str, Any]:
    """Compiles a step for all devices and prints what it needs on each of them.

    The numbers are those of XLA's compiler for CPUs; an accelerator may need less for operations
    that it fuses. No weights are created.

    Args:
      config: Configuration of the backbone.
      method: Tuning method.
      layout: Layout on all devices.
      lengths: Numbers of tokens of "inputs" and "targets".
      batch_size: Number of rows on all devices together.
      optimizer: Function from the learning rate to an optax transformation.
      loss: Settings of the loss.
      num_microbatches: Number of parts in which a batch is computed.
      json_file: File to write the plan to; "" for none.

    Returns:
      The plan. Bytes are those of one device, except `weight_bytes_total`.
    """
    sharding.check_batch_size(batch_size, layout, parts=num_microbatches)
    if config.products == "auto":  # the plan is for accelerators, whatever this CPU would do
        config = dataclasses.replace(config, products="float32")
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
    compiled = _compiled(step, layout)
    unrolled = step
    if config.scan_layers:  # the compiler counts the body of a loop once
        unrolled, _ = lowered(dataclasses.replace(config, scan_layers=False), layout=layout)
    known = [(layout, _memory(compiled)["bytes_per_device"])]

    def needed(other: Layout) -> int:
        """The bytes of a device for the step in a layout, which is compiled once."""
        for each, needed in known:
            if each == other:
                return needed
        step, _ = lowered(config, layout=other)
        known.append((other, _memory(_compiled(step, other))["bytes_per_device"]))
        return known[-1][1]

    mesh, specs = layout.mesh, [tuple(leaf.sharding.spec) for leaf in weights]
    plan = {
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "weight_bytes_total": sum(leaf.size * leaf.dtype.itemsize for leaf in weights),
        "weight_bytes_per_device": _bytes_here(weights),
        "weight_shards": math.prod(mesh.shape[axis] for axis in set(jax.tree.leaves(specs))),
        **_memory(compiled),
        "flops_per_device": unrolled.cost_analysis()["flops"] / mesh.size,
        "collectives": collectives(compiled.as_text()),
        "machines": {
            name: fit_on_machine(needed, config, method, batch_size // num_microbatches, *machine)
            for name, machine in MACHINES.items()
            if machine[0] <= jax.device_count()
        },
    }
    print(as_text(plan))
    if json_file:
        files.write_json(epath.Path(json_file).expanduser(), plan)
    return plan


def devices(count: int | None = None) -> list[jax.Device]:
    """Returns the first `count` devices; all of them if None."""
    return jax.devices()[:count]


def placed_shapes(
    config: Config, method: Method, layout: Layout
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of all leaves with their shardings, by path."""
    shardings = flatten(sharding.shardings_of(init_shapes(config, method), layout))
    shapes = ParamSplit.of(config, method).shapes
    return {path: sharding.with_sharding(leaf, shardings[path]) for path, leaf in shapes.items()}


def lowered_step(
    config: Config,
    *,
    method: Method,
    layout: Layout,
    lengths: Mapping[str, int],
    batch_size: int,
    optimizer: Callable[[float], optax.GradientTransformation],
    loss: Loss,
    num_microbatches: int,
) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """Returns the lowered step, and the shapes of all leaves with their shardings."""
    split = ParamSplit.of(config, method)
    weights = placed_shapes(config, method, layout)
    trained, frozen = split.split(unflatten(weights))
    transform = only_trained(optimizer(0.3), split)
    slots = jax.eval_shape(transform.init, trained)
    state_class: Any = TrainState  # holds shapes in place of arrays
    state = state_class(
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
    step = make_train_step(families.model(config, method), split, transform, loss, num_microbatches)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    out = (places, layout.everywhere)
    with sharding.on(layout):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
        return jitted.lower(state, frozen, batch, key), jax.tree.leaves(weights)


def collectives(hlo: str) -> dict[str, int]:
    """Counts the collective operations of each kind in compiled HLO text."""
    kinds = "|".join(COLLECTIVES)
    return dict(collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", hlo)))


def fit_on_machine(
    needed: Callable[[Layout], int],
    config: Config,
    method: Method,
    rows: int,
    devices: int,
    memory: int,
) -> dict[str, Any] | None:
    """Looks for the fewest partitions with which the step fits a machine.

    Only partitions that leave half the memory to activations are tried, and the largest number.

    Args:
      needed: Function from a layout to the bytes of a device that the step needs.
      config: Configuration of the backbone.
      method: Tuning method.
      rows: Number of rows that all devices compute at a time.
      devices: Number of devices of the machine.
      memory: Bytes of each device.

    Returns:
      Whether the step fits, with how many partitions, and its bytes; None if the rows cannot be
      divided over the machine.
    """
    possible = [n for n in possible_partitions(config, devices) if rows % (devices // n) == 0]
    trial: dict[str, Any] | None = None
    for partitions in possible:
        layout = sharding.layout(partitions, devices=jax.devices()[:devices])
        weights = placed_shapes(config, method, layout).values()
        if _bytes_here(weights) > memory / 2 and partitions != possible[-1]:
            continue
        size = needed(layout)
        fits = size <= memory
        trial = {"fits": fits, "num_partitions": partitions, "bytes_per_device": size}
        if fits:
            break
    return trial and trial | {"memory": memory}


def _compiled(step: Any, layout: Layout) -> Any:
    """Compiles a lowered step, and says so: this takes from seconds to minutes."""
    shape = ", ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
    print(f"compiling for {layout.mesh.size} devices: {shape}", file=sys.stderr, flush=True)
    return step.compile()


def _bytes_here(weights: Iterable[jax.ShapeDtypeStruct]) -> int:
    """Returns the bytes of the leaves on one device."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in weights)
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def _memory(compiled: Any) -> dict[str, int]:
    """Returns the bytes that a compiled step needs on one device."""
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return {
        "argument_bytes": arguments,
        "temporary_bytes": temporaries,
        "bytes_per_device": arguments + temporaries,
    }


def as_text(plan: Mapping[str, Any]) -> str:
    """Formats a plan for people."""
    lines = [f"mesh {plan['mesh']}, {plan['devices']} devices"]
    for name in ("weight_bytes_total", "weight_bytes_per_device", "temporary_bytes"):
        lines.append(f"{name:24} {plan[name] / GIB:12.3f} GiB")
    lines.append(f"{'flops_per_device':24} {plan['flops_per_device']:12.4g}")
    calls = ", ".join(f"{count} {kind}" for kind, count in plan["collectives"].items())
    lines.append(f"{'collectives':24} {calls or 'none'}")
    for name, machine in plan["machines"].items():
        lines.append(f"{name:24} {_machine_as_text(machine)}")
    lines.append(
        "less memory: ACTIVATION_DTYPE = 'bfloat16', REMAT = 'full', NUM_MICROBATCHES = 2, ..."
    )
    return "\n".join(lines)


def _machine_as_text(machine: Mapping[str, Any] | None) -> str:
    if machine is None:
        return "BATCH_SIZE cannot be divided over it"
    return (
        f"{'fits' if machine['fits'] else 'does not fit'}: {machine['bytes_per_device'] / GIB:.1f} "
        f"of {machine['memory'] / GIB:.0f} GiB, NUM_PARTITIONS = {machine['num_partitions']}"
    )
