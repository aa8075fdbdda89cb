"""A train step compiled ahead of time, without weights: bytes, operations, collectives."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prompt_tuning import report, sharding
from prompt_tuning.loss import Loss
from prompt_tuning.methods.base import Method
from prompt_tuning.optim import only_trained
from prompt_tuning.params import ParamSplit, flatten, unflatten
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import T5, init_shapes
from prompt_tuning.train_step import TrainState, make_train_step

JSON = "json"  # the command's flag
GIB = 2**30
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


def plan(
    *,
    config: T5Config,
    method: Method,
    num_partitions: int,
    lengths: Mapping[str, int],
    batch_size: int,
    optimizer: Callable[[float], optax.GradientTransformation],
    loss: Loss,
    num_microbatches: int = 1,
    on_start: Callable[[epath.Path], Any] | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Compiles a step for all devices and prints what it needs on each of them.

    The numbers are those of XLA's compiler for CPUs: operations that an accelerator fuses may
    need less there. No weights are made.

    Args:
      config, method: the model.
      num_partitions: size of the mesh's model axis.
      lengths: tokens of "inputs" and "targets".
      batch_size: rows of all devices together.
      optimizer, loss, num_microbatches: of the step.
      on_start: unused, there is no folder.
      dry_run: print the leaves and compile nothing.

    Returns:
      What `--json` is given. Bytes are of one device, but for `weight_bytes_total`.
    """
    mesh = sharding.make_mesh(num_partitions)
    if dry_run:
        print(report.plan(config, method, mesh))
        return {}
    sharding.check_batch_size(batch_size, mesh, parts=num_microbatches)
    lowered = functools.partial(
        lowered_step,
        method=method,
        mesh=mesh,
        lengths=lengths,
        batch_size=batch_size,
        optimizer=optimizer,
        loss=loss,
        num_microbatches=num_microbatches,
    )
    step, weights = lowered(config)
    compiled = step.compile()
    memory = compiled.memory_analysis()
    # The compiler counts what is in a loop once.
    unrolled, _ = lowered(dataclasses.replace(config, scan_layers=False))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in weights.values())
    here = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in weights.values()
    )
    found = {
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "weight_bytes_total": total,
        "weight_bytes_per_device": here,
        "weight_shards": mesh.shape["model"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_per_device": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "flops_per_device": unrolled.cost_analysis()["flops"] / mesh.size,
        "collectives": collectives(compiled.as_text()),
    }
    rows = batch_size // mesh.shape["data"]
    found["machines"] = {
        name: fit(devices, size, total, memory.temp_size_in_bytes / rows, batch_size)
        for name, (devices, size) in MACHINES.items()
    }
    print(shown(found))
    if path := flags.FLAGS[JSON].value:
        report.write_json(epath.Path(path).expanduser(), found)
    return found


def lowered_step(
    config: T5Config,
    *,
    method: Method,
    mesh: Mesh,
    lengths: Mapping[str, int],
    batch_size: int,
    optimizer: Callable[[float], optax.GradientTransformation],
    loss: Loss,
    num_microbatches: int,
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """The traced step, and the shapes of all leaves with their shardings."""
    split = ParamSplit.of(config, method)
    shardings = flatten(sharding.shardings_of(init_shapes(config, method), mesh))
    weights = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
        for path, leaf in split.shapes.items()
    }
    trained, frozen = split.split(unflatten(weights))
    transform = only_trained(optimizer(0.3), split)
    slots = jax.eval_shape(transform.init, trained)
    shaped: Any = TrainState  # of shapes in place of arrays
    state = shaped(
        jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, P())),
        trained,
        jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            slots,
            sharding.like_trained(slots, trained, mesh),
        ),
    )
    rows = NamedSharding(mesh, P("data"))
    features = {
        "encoder_input_tokens": "inputs",
        "decoder_input_tokens": "targets",
        "decoder_target_tokens": "targets",
        "decoder_loss_weights": "targets",
    }
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, lengths[kind]), jnp.int32, sharding=rows)
        for name, kind in features.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0)) if config.dropout_rate else None
    step = make_train_step(T5(config, method), split, transform, loss, num_microbatches)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    out = (places, NamedSharding(mesh, P()))
    with sharding.on(mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
        return jitted.lower(state, frozen, batch, key), weights


def collectives(hlo: str) -> dict[str, int]:
    """How many of each kind of collective operation compiled text holds."""
    kinds = "|".join(COLLECTIVES)
    return dict(collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", hlo)))


def fit(
    devices: int, memory: int, weights: int, temporaries_a_row: float, batch_size: int
) -> dict[str, Any]:
    """The fewest partitions with which a step fits a machine, estimated from another one's.

    Weights are divided by the partitions; temporaries grow with the rows of a device, and are not
    divided (they are, in part, so this is too much).
    """
    for partitions in (2**i for i in range(devices.bit_length())):
        rows = math.ceil(batch_size * partitions / devices)
        needed = weights / partitions + temporaries_a_row * rows
        if needed <= memory:
            break
    return {
        "fits": needed <= memory,
        "num_partitions": partitions,
        "bytes_per_device": round(needed),
        "memory": memory,
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
        answer = "fits" if machine["fits"] else "does not fit"
        lines.append(
            f"{name:24} {answer}: about {machine['bytes_per_device'] / GIB:.1f} of "
            f"{machine['memory'] / GIB:.0f} GiB, NUM_PARTITIONS = {machine['num_partitions']}"
        )
    return "\n".join(lines)
