"""How arrays lie on devices: a mesh, and the table from logical axes to its axes (GSPMD, Auto)."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Axes = str | tuple[str, ...] | None
Rule = tuple[str, Axes]

# T5X's standard rules; `prompt*` replicated, so that any one host can save the prompt.
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
# An axis `fsdp` divides rows as `data` does, and each weight's side that `model` leaves whole.
_FSDP: tuple[Rule, ...] = (("batch", ("data", "fsdp")), ("embed", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices, and what lies along which of its axes.

    Attributes:
      mesh: all devices of all hosts; has the axes "data" and "model".
      rules: from each logical axis to mesh axes.
    """

    mesh: Mesh
    rules: tuple[Rule, ...] = AXIS_RULES

    def spec(self, *logical: str | None) -> P:
        """Mesh axes of an array with these logical axes."""
        return nn.logical_to_mesh_axes(logical, list(self.rules)) or P()

    @property
    def rows(self) -> NamedSharding:
        """Of arrays [B, ...]."""
        return NamedSharding(self.mesh, self.spec("batch"))

    @property
    def everywhere(self) -> NamedSharding:
        """Of arrays that each device holds whole."""
        return NamedSharding(self.mesh, P())

    @property
    def row_shards(self) -> int:
        """Parts that the rows of a batch are divided into."""
        return math.prod(self.mesh.shape[axis] for axis in _names(self.spec("batch")[0]))


def layout(
    num_partitions: int = 1,
    model_parallel_submesh: Sequence[int] | None = None,
    mesh: Mapping[str, int] | None = None,
    axis_rules: Sequence[Rule] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """A layout on the devices of all hosts.

    Args:
      num_partitions: size of the axis "model" of a (data, model) mesh (T5X).
      model_parallel_submesh: in its place a TPU slice's sides (T5X); their product is the size.
      mesh: in their place, sizes by axis, such as {"data": 2, "fsdp": 2, "model": 2}.
      axis_rules: (logical axis, mesh axis, or several, or None), in the place of `AXIS_RULES` for
        the same logical axis, or added to them.
      devices: in the place of all.

    Raises:
      ValueError: naming the setting that does not fit the others, the devices or the mesh.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(len(devices), num_partitions, model_parallel_submesh, mesh)
    rules: dict[str, Axes] = dict((*AXIS_RULES, *(_FSDP if "fsdp" in sizes else ())))
    for name, axes in axis_rules:
        rules[name] = tuple(axes) if isinstance(axes, list) else axes
        if unknown := set(_names(rules[name])) - set(sizes):
            raise ValueError(
                f"AXIS_RULES: {name!r} lies along {', '.join(sorted(unknown))}; the mesh has "
                f"{', '.join(sizes)}"
            )
    lies_along = {name for axes in rules.values() for name in _names(axes)}
    if idle := set(sizes) - {"data", "model"} - lies_along:
        raise ValueError(
            f"MESH = {dict(sizes)}: nothing lies along {', '.join(sorted(idle))}; axes are data, "
            "model and fsdp, and those that AXIS_RULES name"
        )
    kinds = (AxisType.Auto,) * len(sizes)
    made = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)
    return Layout(made, tuple(rules.items()))


def _sizes(
    devices: int,
    num_partitions: int,
    submesh: Sequence[int] | None,
    mesh: Mapping[str, int] | None,
) -> dict[str, int]:
    """The mesh's axes."""
    given = {
        "NUM_PARTITIONS": None if num_partitions == 1 else num_partitions,
        "MODEL_PARALLEL_SUBMESH": submesh,
        "MESH": mesh,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{', '.join(f'{k} = {v}' for k, v in given.items())}: set one of them")
    if mesh is not None:
        sizes = {"data": 1, **mesh, "model": mesh.get("model", 1)}
        if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
            raise ValueError(
                f"MESH = {dict(mesh)}: the sizes must multiply to the number of devices, {devices}"
            )
        return sizes
    partitions = num_partitions if submesh is None else math.prod(submesh)
    if partitions < 1 or devices % partitions:
        name, value = next(iter(given.items()))
        raise ValueError(f"{name} = {value}: must divide the number of devices, {devices}")
    return {"data": devices // partitions, "model": partitions}


def _names(axes: Axes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else axes


@contextlib.contextmanager
def on(layout: Layout) -> Iterator[None]:
    """Makes the model's logical constraints mean `layout` while a function is traced and run."""
    with jax.set_mesh(layout.mesh), nn.logical_axis_rules(list(layout.rules)):
        yield


def check_batch_size(
    batch_size: int, layout: Layout, setting: str = "BATCH_SIZE", parts: int = 1
) -> None:
    """Raises ValueError, naming the setting, unless each part of the batch (NUM_MICROBATCHES)
    divides over the devices that rows are divided over.
    """
    if batch_size < 1 or batch_size % (layout.row_shards * parts):
        times = f"NUM_MICROBATCHES = {parts} times " if parts > 1 else ""
        raise ValueError(
            f"{setting} = {batch_size}: must be a positive multiple of {times}the "
            f"{layout.row_shards} devices that the mesh divides rows over"
        )


def shardings_of(boxed_shapes: Any, layout: Layout) -> Any:
    """Shapes boxed with logical axes to a tree of NamedSharding.

    Raises:
      ValueError: for a logical axis that has no rule (linen would replicate it silently), or a leaf
        that the mesh does not divide.
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
    """A leaf's shape and dtype with its sharding; an int8 leaf's scales lie as its channels do."""

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
    """Shardings of an optimizer state: a leaf of a trained leaf's path and shape is laid out as
    that leaf, everything else (counts, factored rows) is replicated.

    `state_shapes` holds ShapeDtypeStructs, `trained` arrays.
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
    """A global array of what each process holds whole; nothing goes from host to host.

    Without a sharding it lies on the default device.
    """
    array = np.asarray(array)
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
