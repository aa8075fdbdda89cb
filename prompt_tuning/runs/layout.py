"""A run's layout on the devices, from its settings."""

from collections.abc import Mapping, Sequence

import jax

from prompt_tuning import sharding
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import AUTO
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.sharding import Layout, Rule
from prompt_tuning.t5.config import T5Config

GIB = 2**30
# Of a trained leaf: itself, its gradient, two slots.
_COPIES = 4


def choose(
    config: T5Config,
    method: Method,
    num_partitions: int | str = 1,
    model_parallel_submesh: Sequence[int] | None = None,
    mesh: Mapping[str, int] | None = None,
    axis_rules: Sequence[Rule] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """See `sharding.layout`; `num_partitions` may be "auto": as few as leave half of each device's
    memory to activations. What was chosen is printed, with the reason.

    Raises:
      UserError: if "auto" finds no number, or it is another text.
    """
    if num_partitions == AUTO:
        num_partitions = _enough(config, method)
    elif isinstance(num_partitions, str):
        raise UserError(f"NUM_PARTITIONS = {num_partitions!r}: must be a number, or {AUTO!r}")
    return sharding.layout(num_partitions, model_parallel_submesh, mesh, axis_rules, devices)


def _enough(config: T5Config, method: Method) -> int:
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if memory is None:  # CPUs
        print("NUM_PARTITIONS = 1: the devices do not tell their memory")
        return 1
    devices, needed = jax.device_count(), parameter_bytes(config, method)
    partitions = fewest_partitions(config, devices, needed, memory)
    print(
        f"NUM_PARTITIONS = {partitions}: of {needed / GIB:.2f} GiB of parameters each device, of "
        f"{memory / GIB:.1f} GiB, holds {needed / partitions / GIB:.2f}"
    )
    return partitions


def parameter_bytes(config: T5Config, method: Method) -> int:
    """Bytes of all leaves, and of the gradients and slots of the trained ones."""
    split = ParamSplit.of(config, method)
    return sum(
        part.size * part.dtype.itemsize * (_COPIES if path in split.trained else 1)
        for path, leaf in split.shapes.items()
        for part in jax.tree.leaves(leaf)
    )


def fewest_partitions(config: T5Config, devices: int, needed: int, memory: int) -> int:
    """The smallest of `possible_partitions` that leaves each device at most half full.

    Raises:
      UserError: if there is none.
    """
    for partitions in possible_partitions(config, devices):
        if needed / partitions <= memory / 2:
            return partitions
    raise UserError(
        f"NUM_PARTITIONS = {AUTO!r}: {needed / GIB:.2f} GiB of parameters do not fit into half of "
        f"{devices} devices of {memory / GIB:.1f} GiB; use more, or a smaller BACKBONE_DTYPE"
    )


def possible_partitions(config: T5Config, devices: int) -> list[int]:
    """The divisors of `devices` and of the heads, in order."""
    return [n for n in range(1, devices + 1) if devices % n == config.num_heads % n == 0]
