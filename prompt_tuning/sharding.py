"""Device mesh and the one table from logical axis names to mesh axes (GSPMD, Auto axes)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# T5X's standard rules; `prompt*` replicated, so that any one host can save the prompt.
AXIS_RULES: Sequence[tuple[str, str | None]] = (
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


def make_mesh(num_partitions: int = 1) -> Mesh:
    """All devices as a (data, model) mesh; `num_partitions` is the size of the model axis (T5X).

    Raises:
      ValueError: if the devices do not divide by `num_partitions`.
    """
    devices = jax.device_count()
    if num_partitions < 1 or devices % num_partitions:
        raise ValueError(
            f"NUM_PARTITIONS = {num_partitions}: must divide the number of devices, {devices}"
        )
    shape = (devices // num_partitions, num_partitions)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


@contextlib.contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Makes the model's logical constraints mean `mesh` while a function is traced and run."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(AXIS_RULES)):
        yield


def check_batch_size(
    batch_size: int, mesh: Mesh, setting: str = "BATCH_SIZE", parts: int = 1
) -> None:
    """Raises ValueError, naming the setting, unless each part of the batch (NUM_MICROBATCHES)
    divides over the data axis.
    """
    if batch_size < 1 or batch_size % (mesh.shape["data"] * parts):
        times = f"NUM_MICROBATCHES = {parts} times " if parts > 1 else ""
        raise ValueError(
            f"{setting} = {batch_size}: must be a positive multiple of {times}the "
            f"{mesh.shape['data']} devices of the mesh's data axis"
        )


def shardings_of(boxed_shapes: Any, mesh: Mesh) -> Any:
    """Shapes boxed with logical axes to a tree of NamedSharding.

    Raises:
      ValueError: for a logical axis that has no rule (linen would replicate it silently).
    """
    specs = nn.get_partition_spec(boxed_shapes)
    known = {name for name, _ in AXIS_RULES}
    for spec in jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P)):
        if unknown := {axis for axis in spec if axis is not None} - known:
            raise ValueError(f"logical axes without a rule in AXIS_RULES: {sorted(unknown)}")
    return nn.logical_to_mesh_sharding(specs, mesh, list(AXIS_RULES))


def like_trained(state_shapes: Any, trained: Any, mesh: Mesh) -> Any:
    """Shardings of an optimizer state: a leaf of a trained leaf's path and shape is laid out as
    that leaf, everything else (counts, factored rows) is replicated.

    `state_shapes` holds ShapeDtypeStructs, `trained` arrays.
    """
    by_path = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained)}

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            match = by_path.get(names[start:])
            if match is not None and match.shape == leaf.shape:
                return match.sharding
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(sharding, state_shapes)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows [B / processes, ...] to a global array split over the data axis."""
    sharding = NamedSharding(mesh, P("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }
