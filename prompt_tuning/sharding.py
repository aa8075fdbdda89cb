"""Placement of arrays on devices: a mesh, and rules from logical to mesh axes (GSPMD, Auto)."""

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Axes = str | tuple[str, ...] | None
Rule = tuple[str, Axes]

# T5X's standard rules; `prompt*` is replicated, so that any host can save the prompt.
AXIS_RULES: tuple[Rule, ...] = (
    ("batch", "data"),
    ("vocab", "model"),
    ("embed", None),
    ("mlp", "model"),
    ("heads", "model"),
    ("kv", None),
    ("joined_kv", "model"),
    ("relpos_buckets", None),
    ("length", None),
    ("layers", None),
    ("prompt", None),
    ("prompt_embed", None),
)
# An axis `fsdp` divides rows as `data` does, and the axis of each weight that `model` does not.
_FSDP: tuple[Rule, ...] = (("batch", ("data", "fsdp")), ("embed", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices, and the rules by which arrays are divided over it.

    Attributes:
      mesh: mesh over the devices of all hosts, with at least the axes "data" and "model".
      rules: pairs of a logical axis and the mesh axes that divide it.
    """

    mesh: Mesh
    rules: tuple[Rule, ...] = AXIS_RULES

    def spec(self, *logical: str | None) -> P:
        """Partition spec of an array with these logical axes."""
        return nn.logical_to_mesh_axes(logical, list(self.rules)) or P()

    @property
    def rows(self) -> NamedSharding:
        """Sharding of arrays [B, ...] divided by rows."""
        return NamedSharding(self.mesh, self.spec("batch"))

    @property
    def everywhere(self) -> NamedSharding:
        """Sharding of arrays that every device holds in full."""
        return NamedSharding(self.mesh, P())

    @property
    def row_shards(self) -> int:
        """Number of parts that the rows of a batch are divided into."""
        return math.prod(self.mesh.shape[axis] for axis in _names(self.spec("batch")[0]))


def layout(
    num_partitions: int = 1,
    model_parallel_submesh: Sequence[int] | None = None,
    mesh: Mapping[str, int] | None = None,
    axis_rules: Sequence[Rule] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """Makes a layout over the devices of all hosts.

    Args:
      num_partitions: size of the axis "model" of a (data, model) mesh, as in T5X.
      model_parallel_submesh: alternatively, the sides of a TPU slice, whose product is that size,
        as in T5X.
      mesh: alternatively, sizes by axis, such as {"data": 2, "fsdp": 2, "model": 2}.
      axis_rules: pairs of a logical axis and a mesh axis, several of them, or None; each replaces
        the rule of `AXIS_RULES` for its logical axis, or adds one.
      devices: devices of the mesh; None for all.

    Raises:
      ValueError: if a setting contradicts another one, the devices or the mesh; the message names
        it.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(len(devices), num_partitions, model_parallel_submesh, mesh)
    rules: dict[str, Axes] = dict((*AXIS_RULES, *(_FSDP if "fsdp" in sizes else ())))
    for name, axes in axis_rules:
        rules[name] = tuple(axes) if isinstance(axes, list) else axes
        if unknown := set(_names(rules[name])) - set(sizes):
            raise ValueError(
                f"AXIS_RULES: {name!r} is divided by {', '.join(sorted(unknown))}; the mesh has "
                f"the axes {', '.join(sizes)}"
            )
    used_axes = {name for axes in rules.values() for name in _names(axes)}
    if idle := set(sizes) - {"data", "model"} - used_axes:
        raise ValueError(
            f"MESH = {dict(sizes)}: nothing is divided by {', '.join(sorted(idle))}; use the axes "
            "data, model and fsdp, or name the axis in AXIS_RULES"
        )
    kinds = (AxisType.Auto,) * len(sizes)
    shape, names = tuple(sizes.values()), tuple(sizes)
    device_mesh = jax.make_mesh(shape, names, axis_types=kinds, devices=devices)
    return Layout(device_mesh, tuple(rules.items()))


def _sizes(
    devices: int,
    num_partitions: int,
    submesh: Sequence[int] | None,
    mesh: Mapping[str, int] | None,
) -> dict[str, int]:
    """Sizes of the mesh, by axis."""
    settings = {
        "NUM_PARTITIONS": None if num_partitions == 1 else num_partitions,
        "MODEL_PARALLEL_SUBMESH": submesh,
        "MESH": mesh,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    if len(settings) > 1:
        assigned = ", ".join(f"{name} = {value}" for name, value in settings.items())
        raise ValueError(f"{assigned}: set only one of them")
    if mesh is not None:
        sizes = {"data": 1, **mesh, "model": mesh.get("model", 1)}
        if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
            raise ValueError(
                f"MESH = {dict(mesh)}: the sizes must multiply to the number of devices, {devices}"
            )
        return sizes
    partitions = num_partitions if submesh is None else math.prod(submesh)
    if partitions < 1 or devices % partitions:
        name, value = next(iter(settings.items()))
        raise ValueError(f"{name} = {value}: must divide the number of devices, {devices}")
    return {"data": devices // partitions, "model": partitions}


def _names(axes: Axes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else axes


@contextlib.contextmanager
def on(layout: Layout) -> Iterator[None]:
    """Applies the layout to the model's logical constraints while a function is traced and run."""
    with jax.set_mesh(layout.mesh), nn.logical_axis_rules(list(layout.rules)):
        yield


def check_batch_size(
    batch_size: int, layout: Layout, setting: str = "BATCH_SIZE", parts: int = 1
) -> None:
    """Checks that each part of a batch (NUM_MICROBATCHES) can be divided over the mesh.

    Raises:
      ValueError: if it cannot; the message names the setting.
    """
    whole = isinstance(batch_size, numbers.Integral)
    if not whole or batch_size < 1 or batch_size % (layout.row_shards * parts):
        times = f"NUM_MICROBATCHES = {parts} times " if parts > 1 else ""
        raise ValueError(
            f"{setting} = {batch_size!r}: must be a positive multiple of {times}the "
            f"{layout.row_shards} devices that rows are divided over"
        )


def shardings_of(boxed_shapes: Any, layout: Layout) -> Any:
    """Returns the NamedSharding of each leaf of a tree of shapes boxed with logical axes.

    Raises:
      ValueError: if a logical axis has no rule (linen would replicate it silently) or the mesh does
        not divide a leaf.
    """
    specs = nn.get_partition_spec(boxed_shapes)
    known = {name for name, _ in layout.rules}
    for spec in jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P)):
        if unknown := {axis for axis in spec if axis is not None} - known:
            raise ValueError(f"logical axes without a rule in AXIS_RULES: {sorted(unknown)}")
    shardings = nn.logical_to_mesh_sharding(specs, layout.mesh, list(layout.rules))
    jax.tree_util.tree_map_with_path(_check_divides, nn.unbox(boxed_shapes), shardings)
    return shardings


def with_sharding(leaf: Any, sharding: NamedSharding) -> Any:
    """Adds a sharding to a leaf's shape; an int8 leaf's scales are divided as its channels are."""

    def with_part(part: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sizes = zip(sharding.spec, part.shape, leaf.shape, strict=False)
        spec = P(*(axes if size == whole else None for axes, size, whole in sizes))
        place = NamedSharding(sharding.mesh, spec)
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=place)

    return jax.tree.map(with_part, leaf)


def _check_divides(path: Any, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
    for size, axes in zip(leaf.shape, sharding.spec, strict=False):
        parts = math.prod(sharding.mesh.shape[axis] for axis in _names(axes))
        if size % parts:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the mesh {dict(sharding.mesh.shape)} does not divide {name} {leaf.shape}: "
                f"{parts} devices for {size}; choose another NUM_PARTITIONS (or MESH)"
            )


def like_trained(state_shapes: Any, trained: Any, layout: Layout) -> Any:
    """Returns the shardings of an optimizer state.

    A leaf whose path ends in a trained leaf's path, and has its shape, is laid out as that leaf;
    everything else (counts, factored rows) is replicated.

    Args:
      state_shapes: the optimizer state as ShapeDtypeStructs.
      trained: tree of trained arrays.
      layout: layout of the model.
    """
    by_path = {_parts(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained)}

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _parts(path)
        for start in range(len(names)):
            match = by_path.get(names[start:])
            if match is not None and match.shape == leaf.shape:
                return match.sharding
        return layout.everywhere

    return jax.tree_util.tree_map_with_path(sharding, state_shapes)


def _parts(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def put_batch(batch: Any, layout: Layout) -> Any:
    """Places a pytree of arrays [B, ...], the same on every process, with their rows divided."""
    return jax.tree.map(lambda rows: place(rows, layout.rows), batch)


def place(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """Builds a global array from a value that every process holds in full.

    No data moves between hosts. Without a sharding, the array is on the default device.
    """
    array = np.asarray(array)
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
