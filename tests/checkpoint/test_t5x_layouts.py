"""T5X's Orbax checkpoints, and scanned stacks in both layouts, with T5X's names and shapes."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.formats import huggingface, t5x, t5x_orbax
from prompt_tuning.errors import CheckpointError
from prompt_tuning.exchange import inspection
from prompt_tuning.exchange.conversion import convert
from prompt_tuning.t5 import T5Config, preset

NANO = preset("nano")
REAL = {"mini_full": 306, "mini_prompt": 67}
CHECKPOINTS = Path("golden", "checkpoints")


def random_leaves(config: T5Config = NANO) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = huggingface.shapes_of(config)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def wanted(leaves, dtype=jnp.float32, sharding=None) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding) for path, x in leaves.items()
    }


def assert_equal(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def scanned(leaves: dict[str, np.ndarray], heads: int | None, table: str) -> dict[str, np.ndarray]:
    """Leaves stacked as by T5X's scan; relative positions are at `table`."""
    stacked = {}
    for name, leaf in leaves.items():
        stack, _, rest = name.partition("/")
        if rest == "relpos_bias/rel_embedding" and table != "outside":
            copies = [leaf + i * (table == "differs") for i in range(2)]
            stacked[f"{stack}/{stack}/{rest}"] = np.stack(copies, axis=1)
        elif rest.startswith("layers_0/"):
            rest = rest.removeprefix("layers_0/")
            layers = [leaves[f"{stack}/layers_{i}/{rest}"] for i in range(2)]
            if heads and "attention/" in rest:
                out = rest.endswith("out/kernel")
                shape = (heads, -1, leaf.shape[1]) if out else (leaf.shape[0], heads, -1)
                layers = [layer.reshape(shape) for layer in layers]
            stacked[f"{stack}/{stack}/{rest}"] = np.stack(layers, axis=1)
        elif not rest.startswith("layers_"):
            stacked[name] = leaf
    return stacked


WRITERS = {"native": t5x.write_checkpoint, "orbax": t5x_orbax.write_checkpoint}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


# Orbax.


@pytest.mark.parametrize("case", REAL)
def test_every_array_that_t5x_wrote(shared_data, case):
    folder = shared_data / CHECKPOINTS
    checkpoint = backbone.open_t5x(folder / f"{case}_orbax" / "checkpoint_2")
    expected = np.load(folder / f"{case}_expected.npz")
    assert checkpoint.step == 2 and len(checkpoint.leaves) == REAL[case]
    assert checkpoint.leaves.keys() == set(expected.files)
    for name in expected.files:
        leaf = checkpoint.leaves[name]
        assert (leaf.shape, leaf.dtype) == (expected[name].shape, expected[name].dtype)
    params = {name: expected[f"target/{name}"] for name in checkpoint.target_shapes}
    assert_equal(t5x.read_leaves(checkpoint, wanted(params)), params)


def test_item_folder_and_inspect(shared_data):
    path = shared_data / CHECKPOINTS / "mini_full_orbax" / "checkpoint_2"
    assert backbone.open_t5x(path / "state").target_shapes == (
        backbone.open_t5x(path).target_shapes
    )
    actual = inspection.contents_of(path)
    assert (actual.kind, actual.step) == ("T5X checkpoint, Orbax", 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_orbax_itself_reads_what_is_written(tmp_path, dtype):
    """With the handler that T5X restores with, as its checkpoint manager finds it."""
    leaves = {name: leaf.astype(jnp.dtype(dtype)) for name, leaf in random_leaves().items()}
    t5x_orbax.write_checkpoint(tmp_path / "checkpoint_9", leaves, step=9, dtype=jnp.dtype(dtype))
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    with ocp.CheckpointManager(
        tmp_path, item_names=("state",), item_handlers=handlers, options=options
    ) as manager:
        assert manager.latest_step() == 9
        state = manager.restore(9)["state"]
    assert state["state"] == {"step": 9}
    got, expected = state["target"], unflatten_dict(leaves, sep="/")
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, expected))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("use_ocdbt", [True, False])
@pytest.mark.parametrize("use_zarr3", [True, False])
def test_what_orbax_itself_writes_is_read(tmp_path, use_ocdbt, use_zarr3):
    leaves = random_leaves()
    tree = {"target": unflatten_dict(leaves, sep="/"), "state": {"step": np.int32(4)}}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "checkpoint_4" / "state", tree)
    assert backbone.open_t5x(tmp_path / "checkpoint_4").step == 4
    assert_equal(backbone.load(tmp_path / "checkpoint_4", wanted(leaves)), leaves)
    path = "token_embedder/embedding"
    np.testing.assert_array_equal(backbone.load_leaf(tmp_path / "checkpoint_4", path), leaves[path])


def test_native_to_orbax_and_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leaves = random_leaves()
    t5x.write_checkpoint("checkpoint_7", leaves, step=7)
    convert("checkpoint_7", "there/checkpoint_8", "orbax", model="nano")
    convert("there/checkpoint_8", "back/checkpoint_9", "t5x", model="nano")
    assert backbone.open_t5x("there/checkpoint_8").step == 8
    for place in ("there/checkpoint_8", "back/checkpoint_9"):
        assert_equal(backbone.load(place, wanted(leaves)), leaves)


def test_orbax_write_refuses_to_overwrite_and_leaves_nothing_half(tmp_path):
    with pytest.raises(CheckpointError, match="exists; choose another path"):
        t5x_orbax.write_checkpoint(tmp_path, {"a": np.ones(2)}, step=1)
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        t5x_orbax.write_checkpoint(tmp_path / "checkpoint_1", {"a": Unreadable()}, step=1)
    assert "\n" not in str(caught.value) and "free disk space" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Unreadable:
    shape, dtype = (2,), np.dtype("float32")

    def __array__(self, dtype=None, copy=None):
        raise OSError("no space left")


def metadata_of(folder: Path, change) -> None:
    path = folder / "state" / "_METADATA"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [], "Orbax checkpoint, but not one of a T5X"),
        (lambda content: ["('target', 'a')"], "_METADATA is damaged"),
        (lambda content: content | {"tree_metadata": {"('target'": {}}}, "_METADATA is damaged"),
        (
            lambda content: {"tree_metadata": {"('target'": entry("target", "gone")}},
            "arrays are missing or damaged",
        ),
        (
            lambda content: {"tree_metadata": {"('target'": entry("target", "../../x")}},
            "is not the name of an array",
        ),
    ],
)
def test_damaged_metadata(tmp_path, change, message):
    t5x_orbax.write_checkpoint(tmp_path / "c", {"a": np.ones(2)}, step=1)
    metadata_of(tmp_path / "c", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        backbone.open_t5x(tmp_path / "c")
    assert "\n" not in str(caught.value)


def entry(*keys: str) -> dict:
    return {
        "key_metadata": [{"key": key, "key_type": 2} for key in keys],
        "value_metadata": {"value_type": "jax.Array"},
    }


@pytest.mark.parametrize("where", ["manifest.ocdbt", "d"])
def test_lost_arrays(tmp_path, where):
    leaves = random_leaves()
    t5x_orbax.write_checkpoint(tmp_path / "c", leaves, step=1)
    lost = tmp_path / "c" / "state" / where
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(CheckpointError, match=r"missing or damaged") as caught:
        backbone.load(tmp_path / "c", wanted(leaves))
    assert "\n" not in str(caught.value)


# Scanned stacks.


@pytest.mark.parametrize("table", ["equal", "outside"])
@pytest.mark.parametrize("heads", [NANO.num_heads, None])
def test_scanned_layers_are_the_unscanned_ones(tmp_path, write, heads, table):
    leaves = random_leaves()
    write(tmp_path / "checkpoint_1", scanned(leaves, heads, table), step=1)
    assert_equal(backbone.load(tmp_path / "checkpoint_1", wanted(leaves)), leaves)
    actual = backbone.open_leaves(tmp_path / "checkpoint_1", huggingface.shapes_of(NANO))
    assert_equal({name: np.asarray(leaf) for name, leaf in actual.items()}, leaves)


@pytest.mark.parametrize("heads", [4, None])
@pytest.mark.parametrize("spec", [(None, "y"), ("y", None), ("x", "y"), (("x", "y"), None)])
def test_scanned_onto_shards(tmp_path, write, heads, spec):
    """Shards of two columns divide heads of width four."""
    shapes = {f"{name}/kernel": (16, 16) for name in ("query", "out")}
    layers = {
        f"encoder/layers_{i}/attention/{name}": np.random.default_rng(i).normal(size=shape)
        for i in range(2)
        for name, shape in shapes.items()
    }
    layers = {name: layer.astype(np.float32) for name, layer in layers.items()}
    write(tmp_path / "c", scanned(layers, heads, "outside"), step=0)
    mesh = Mesh(np.array(jax.devices("cpu")).reshape(2, 4), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    got = backbone.load(tmp_path / "c", wanted(layers, sharding=sharding))
    assert_equal(got, layers)
    for name, array in got.items():
        assert array.sharding == sharding
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, layers[name][shard.index])


def test_heads_apart_without_a_scan(tmp_path, write):
    leaves = random_leaves()
    query, out = (f"encoder/layers_0/attention/{name}/kernel" for name in ("query", "out"))
    apart = leaves | {
        query: leaves[query].reshape(NANO.d_model, NANO.num_heads, NANO.head_dim),
        out: leaves[out].reshape(NANO.num_heads, NANO.head_dim, NANO.d_model),
    }
    write(tmp_path / "checkpoint_1", apart, step=1)
    assert_equal(backbone.load(tmp_path / "checkpoint_1", wanted(leaves)), leaves)


def test_layers_with_tables_of_their_own_are_no_t5(tmp_path, write):
    leaves = random_leaves()
    write(tmp_path / "checkpoint_1", scanned(leaves, None, "differs"), step=1)
    with pytest.raises(CheckpointError, match=r"missing: \[decoder/relpos_bias.*unexpected: \[.*"):
        backbone.load(tmp_path / "checkpoint_1", wanted(leaves))


def test_names_and_shapes_of_a_scanned_t5(shared_data, tmp_path, write):
    """From the names of T5X's scalable_t5 to those of its unscanned example."""
    names = json.loads((shared_data / "golden" / "names" / "parameters.json").read_text())
    listed = names["t5x_examples_scalable_t5_tiny"]
    stacked = {name: np.zeros(entry["shape"], np.float32) for name, entry in listed.items()}
    write(tmp_path / "checkpoint_1", stacked, step=1)
    plain = next(value for name, value in names.items() if name.startswith("t5x_examples_t5_tiny"))
    expected = {name: tuple(entry["shape"]) for name, entry in plain.items()}
    assert backbone.open_t5x(tmp_path / "checkpoint_1").target_shapes == expected
