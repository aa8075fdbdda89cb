"""The layout of a run on the devices, from its settings."""

import math
from collections.abc import Mapping, Sequence

import jax

from prompt_tuning import sharding
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import AUTO
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.sharding import Layout, Rule
from prompt_tuning.transformer.config import Config

GIB = 2**30
# A trained leaf needs memory for itself, its gradient, and two optimizer slots.
_COPIES = 4


def choose(
    config: Config,
    method: Method,
    num_partitions: int | str = 1,
    model_parallel_submesh: Sequence[int] | None = None,
    mesh: Mapping[str, int] | None = None,
    axis_rules: Sequence[Rule] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """Makes the layout of a model; see `sharding.layout` for the arguments.

    `num_partitions` may be "auto": as few as leave half of each device's memory to activations.
    This choice and its reason are printed.

    Raises:
      UserError: If "auto" finds no number, or `num_partitions` is another string.
    """
    if num_partitions == AUTO:
        num_partitions = _enough(config, method)
    elif isinstance(num_partitions, str):
        raise UserError(f"NUM_PARTITIONS = {num_partitions!r}: must be a number, or {AUTO!r}")
    return sharding.layout(num_partitions, model_parallel_submesh, mesh, axis_rules, devices)


def _enough(config: Config, method: Method) -> int:
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if memory is None:  # CPUs
        print("NUM_PARTITIONS = 1: the devices do not report their memory")
        return 1
    devices, needed = jax.device_count(), parameter_bytes(config, method)
    partitions = fewest_partitions(config, devices, needed, memory)
    print(
        f"NUM_PARTITIONS = {partitions}: each device of {memory / GIB:.1f} GiB holds "
        f"{needed / partitions / GIB:.2f} of {needed / GIB:.2f} GiB of parameters"
    )
    return partitions


def parameter_bytes(config: Config, method: Method) -> int:
    """Returns the bytes of all leaves, and of the trained leaves' gradients and optimizer slots."""
    split = ParamSplit.of(config, method)
    return sum(
        part.size * part.dtype.itemsize * (_COPIES if path in split.trained else 1)
        for path, leaf in split.shapes.items()
        for part in jax.tree.leaves(leaf)
    )


def fewest_partitions(config: Config, devices: int, needed: int, memory: int) -> int:
    """Returns the smallest of `possible_partitions` that fills at most half of each device.

    Raises:
      UserError: If there is none.
    """
    for partitions in possible_partitions(config, devices):
        if needed / partitions <= memory / 2:
            return partitions
    raise UserError(
        f"NUM_PARTITIONS = {AUTO!r}: {needed / GIB:.2f} GiB of parameters do not fit into half of "
        f"{devices} devices of {memory / GIB:.1f} GiB; use more, or a smaller BACKBONE_DTYPE"
    )


def possible_partitions(config: Config, devices: int) -> list[int]:
    """Returns the common divisors of `devices` and of the numbers of heads, in order."""
    heads = math.gcd(*(config.stack(name).key_heads for name in ("encoder", "decoder")))
    return [n for n in range(1, devices + 1) if devices % n == heads % n == 0]
