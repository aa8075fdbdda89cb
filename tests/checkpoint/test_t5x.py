"""T5X's native checkpoints: real ones bit for bit, our own writer's, and damaged ones."""

import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from etils import epath
from etils.epath.testing import mock_epath
from flax import serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning.checkpoint.fit import check_fits
from prompt_tuning.checkpoint.formats import t5x
from prompt_tuning.checkpoint.formats.t5x import open_checkpoint, read_leaves, write_checkpoint
from prompt_tuning.errors import CheckpointError

MINI_BFLOAT16 = Path(__file__).parents[1] / "fixtures" / "t5x_mini_bfloat16"
BFLOAT16 = np.dtype(jnp.bfloat16)

# Folder or file, file of expected arrays, the prefix that its keys lack, step, number of leaves.
REAL = {
    "released_tiny": (
        "t5/test_t5_1_1_tiny/checkpoint_3",
        "golden/tiny/weights.npz",
        "target/",
        3,
        261,
    ),
    "single_file": (
        "golden/checkpoints/t5x_single_file/test_t5_tiny.checkpoint_0",
        "golden/t5x_tiny/weights.npz",
        "target/",
        0,
        261,
    ),
    "full": (
        "golden/checkpoints/mini_full_legacy/checkpoint_2",
        "golden/checkpoints/mini_full_expected.npz",
        "",
        2,
        306,
    ),
    "prompt": (
        "golden/checkpoints/mini_prompt_legacy/checkpoint_2",
        "golden/checkpoints/mini_prompt_expected.npz",
        "",
        2,
        67,
    ),
    "bfloat16": (
        "golden/checkpoints/mini_bfloat16_legacy/checkpoint_0",
        "golden/mini/weights.npz",
        "target/",
        0,
        306,
    ),
}


def structs(checkpoint, dtype=None, sharding=None):
    return {
        name: jax.ShapeDtypeStruct(
            shape, dtype or checkpoint.leaves["target/" + name].dtype, sharding=sharding
        )
        for name, shape in checkpoint.target_shapes.items()
    }


def stored_array(leaf):
    """The stored array, read without our reader (which reads parameters only)."""
    if isinstance(leaf.source, np.ndarray):
        return leaf.source
    return ts.open(dict(leaf.source)).result().read().result()


def assert_same(actual, expected):
    """Equal shape, dtype and bits (NaNs and signed zeros included)."""
    actual = np.asarray(actual)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert actual.tobytes() == expected.tobytes()


def some_params():
    rng = np.random.default_rng(0)
    shapes = {"token_embedder/embedding": (16, 8), "encoder/layers_0/mlp/wo/kernel": (8, 24)}
    shapes |= {"encoder/encoder_norm/scale": (8,), "temperature": ()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def written(tmp_path):
    """A small checkpoint that we wrote, and its arrays."""
    params = some_params()
    write_checkpoint(tmp_path / "checkpoint_7", params, step=7)
    return tmp_path / "checkpoint_7", params


def edit_index(folder, change):
    content = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    change(content)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


# Reading.


@pytest.mark.parametrize("case", REAL)
def test_every_array_of_a_real_checkpoint(shared_data, case):
    path, expected_path, prefix, step, count = REAL[case]
    checkpoint = open_checkpoint(shared_data / path)
    expected = np.load(shared_data / expected_path)
    expected = {prefix + name: expected[name] for name in expected.files}
    if case == "bfloat16":
        expected = {name: array.astype(BFLOAT16) for name, array in expected.items()}

    assert checkpoint.step == step
    assert len(checkpoint.leaves) == count
    names = {name for name in checkpoint.leaves if name.startswith(prefix)}
    assert names == expected.keys()
    params = read_leaves(checkpoint, structs(checkpoint))
    for name, array in expected.items():
        leaf = checkpoint.leaves[name]
        assert (leaf.shape, leaf.dtype) == (array.shape, array.dtype)
        is_param = name.startswith("target/")
        assert_same(params[name[7:]] if is_param else stored_array(leaf), array)


def test_bfloat16_checkpoint_on_any_machine():
    checkpoint = open_checkpoint(MINI_BFLOAT16 / "checkpoint_0")
    expected = np.load(MINI_BFLOAT16 / "expected.npz")
    assert checkpoint.step == 0
    assert checkpoint.target_shapes.keys() == set(expected.files)
    as_stored = read_leaves(checkpoint, structs(checkpoint))
    as_float32 = read_leaves(checkpoint, structs(checkpoint, dtype=jnp.float32))
    for name in expected.files:
        assert_same(as_stored[name], expected[name].view(BFLOAT16))
        assert_same(as_float32[name], expected[name].view(BFLOAT16).astype(np.float32))


@pytest.mark.parametrize("spec", [("x", None), (None, "y"), ("y", "x"), (("x", "y"),), ()])
@pytest.mark.parametrize("inline", [False, True])
def test_sharded_read_equals_unsharded(tmp_path, monkeypatch, spec, inline):
    # Chunks of 12 rows for shards of 2 to 16: neither divides the other.
    monkeypatch.setattr(t5x, "_CHUNK_BYTES", 12 * 16 * 4)
    array = np.random.default_rng(1).normal(size=(24, 16)).astype(np.float32)
    write_checkpoint(tmp_path / "checkpoint_1", {"a/kernel": array}, step=1)
    assert len(list((tmp_path / "checkpoint_1/target.a.kernel").glob("[0-9]*"))) > 1
    if inline:
        edit_index(
            tmp_path / "checkpoint_1", lambda c: c["optimizer"]["target"]["a"].update(kernel=array)
        )
    mesh = Mesh(np.array(jax.devices("cpu")).reshape(2, 4), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    checkpoint = open_checkpoint(tmp_path / "checkpoint_1")
    for dtype in (jnp.float32, jnp.bfloat16):
        (plain,) = read_leaves(checkpoint, structs(checkpoint, dtype)).values()
        (sharded,) = read_leaves(checkpoint, structs(checkpoint, dtype, sharding)).values()
        assert sharded.sharding == sharding
        assert_same(plain, array.astype(dtype))
        assert_same(sharded, array.astype(dtype))
        for shard in sharded.addressable_shards:
            assert_same(shard.data, array.astype(dtype)[shard.index])


def test_each_shard_is_read_once_and_nothing_else(written, monkeypatch):
    path, params = written
    mesh = Mesh(np.array(jax.devices("cpu")).reshape(2, 4), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec(None, "y"))
    name = "token_embedder/embedding"
    reads = []

    class Store:
        def __init__(self, store):
            self.store = store

        def __getitem__(self, index):
            reads.append(self.store[index].domain)
            return self.store[index]

        @property
        def chunk_layout(self):
            return self.store.chunk_layout

    real_open = ts.open
    monkeypatch.setattr(
        ts, "open", lambda *args, **kw: ts.Future(Store(real_open(*args, **kw).result()))
    )
    wanted = {name: jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=sharding)}
    assert_same(read_leaves(open_checkpoint(path), wanted)[name], params[name])
    # Each quarter of the columns is on two devices, and is read once.
    assert sorted(domain.inclusive_min for domain in reads) == [(0, 0), (0, 2), (0, 4), (0, 6)]
    assert {domain.shape for domain in reads} == {(16, 2)}


def test_single_array_can_be_read(written):
    path, params = written
    wanted = {"temperature": jax.ShapeDtypeStruct((), jnp.float32)}
    assert read_leaves(open_checkpoint(path), wanted) == {"temperature": params["temperature"]}
    assert read_leaves(open_checkpoint(path), {}) == {}


def test_target_at_the_top_of_the_index(written):
    path, params = written
    edit_index(path, lambda content: content.update(content.pop("optimizer")))
    checkpoint = open_checkpoint(path)
    assert checkpoint.step == 7
    arrays = read_leaves(checkpoint, structs(checkpoint))
    assert all(np.array_equal(arrays[name], params[name]) for name in params)


def test_index_file_and_folder_are_the_same_checkpoint(written):
    path, _ = written
    folder, file = open_checkpoint(path), open_checkpoint(str(path / "checkpoint"))
    assert folder.target_shapes == file.target_shapes and folder.step == file.step == 7


def test_relative_path(written, monkeypatch):
    path, params = written
    monkeypatch.chdir(path.parent)
    checkpoint = open_checkpoint(path.name)
    arrays = read_leaves(checkpoint, structs(checkpoint))
    assert_same(arrays["temperature"], params["temperature"])


def test_version_2_has_bfloat16_in_uint16(tmp_path):
    """Version 2, with older forms of the spec: other places of dtype and path, a lost bucket."""
    values = np.arange(-4, 4, 0.25, dtype=np.float32).astype(BFLOAT16).reshape(4, 8)
    (tmp_path / "target.a.kernel").mkdir()
    chunked = {"shape": [4, 8], "chunks": [3, 8], "compressor": {"id": "gzip", "level": 1}}
    kvstore = {"driver": "file", "path": f"{tmp_path}/target.a.kernel/"}
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": {**chunked, "dtype": "<u2"}}
    ts.open(spec, create=True).result().write(values.view(np.uint16)).result()
    old_spec = {
        "driver": "zarr",
        "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"},
        "path": "target.a.kernel",
        "metadata": {**chunked, "dtype": "<u2"},
    }
    target = {"a": {"kernel": old_spec, "scale": values[0]}}
    state = {"step": np.int32(5), "param_states": {"a": None}}
    index = {"version": 2, "optimizer": {"target": target, "state": state}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(index))

    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.step == 5
    assert checkpoint.leaves.keys() == {"target/a/kernel", "target/a/scale", "state/step"}
    assert checkpoint.leaves["target/a/kernel"].dtype == BFLOAT16
    arrays = read_leaves(checkpoint, structs(checkpoint, dtype=jnp.float32))
    assert_same(arrays["a/kernel"], values.astype(np.float32))
    assert_same(arrays["a/scale"], values[0].astype(np.float32))


def test_gcs_uses_the_gcs_driver(written, monkeypatch):
    path, _ = written
    # With TensorFlow installed, etils would use it and bypass the mock.
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)

    def local(original, name, *args):
        return original(str(name).replace("gs://bucket/run", str(path.parent)), *args)

    with mock_epath(open=local, exists=local, isdir=local):
        checkpoint = open_checkpoint("gs://bucket/run/checkpoint_7")
    assert checkpoint.step == 7
    name = "encoder/encoder_norm/scale"
    source = checkpoint.leaves["target/" + name].source
    assert source["kvstore"] == {
        "driver": "gcs",
        "bucket": "bucket",
        "path": "run/checkpoint_7/target.encoder.encoder_norm.scale/",
    }


# Writing.


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_round_trip(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(t5x, "_BATCH_ELEMENTS", 130)
    params = some_params()
    as_jax = {name: jnp.asarray(array) for name, array in params.items()}
    write_checkpoint(tmp_path / "deep/er/checkpoint_11", as_jax, step=11, dtype=dtype)
    checkpoint = open_checkpoint(tmp_path / "deep/er/checkpoint_11")
    assert checkpoint.step == 11
    assert {leaf.dtype for leaf in checkpoint.leaves.values()} == {np.dtype(dtype), np.dtype("i4")}
    arrays = read_leaves(checkpoint, structs(checkpoint))
    assert arrays.keys() == params.keys()
    for name, array in params.items():
        assert_same(arrays[name], array.astype(dtype))
    assert [child.name for child in (tmp_path / "deep/er").iterdir()] == ["checkpoint_11"]


def test_zeros_are_stored(tmp_path):
    """A missing chunk means damage, so chunks of zeros must be written."""
    write_checkpoint(tmp_path / "c", {"lora/b": np.zeros((4, 4))}, step=0)
    checkpoint = open_checkpoint(tmp_path / "c")
    assert not read_leaves(checkpoint, structs(checkpoint))["lora/b"].any()


def test_layout_is_that_of_t5x(tmp_path):
    """Index entries and zarr metadata are those of T5X for the same arrays."""
    by_t5x = MINI_BFLOAT16 / "checkpoint_0"
    checkpoint = open_checkpoint(by_t5x)
    params = read_leaves(checkpoint, structs(checkpoint))
    write_checkpoint(tmp_path / "c", params, step=0, dtype=jnp.bfloat16)
    ours, theirs = (
        serialization.msgpack_restore((folder / "checkpoint").read_bytes())
        for folder in (tmp_path / "c", by_t5x)
    )
    assert ours["version"] == theirs["version"] == 3
    assert ours["optimizer"]["target"] == theirs["optimizer"]["target"]
    assert ours["optimizer"]["state"]["step"].dtype == np.int32
    folders = sorted(folder.name for folder in by_t5x.glob("target.*"))
    assert sorted(folder.name for folder in (tmp_path / "c").glob("target.*")) == folders
    for name in folders:
        metadata = [
            json.loads((c / name / ".zarray").read_text()) for c in (tmp_path / "c", by_t5x)
        ]
        assert metadata[0] == metadata[1]


def test_large_arrays_are_cut_into_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(t5x, "_CHUNK_BYTES", 100)
    array = np.arange(70, dtype=np.float32).reshape(7, 10)
    write_checkpoint(tmp_path / "c", {"a": array}, step=0)
    metadata = json.loads((tmp_path / "c/target.a/.zarray").read_text())
    assert metadata["chunks"] == [4, 5]
    checkpoint = open_checkpoint(tmp_path / "c")
    assert_same(read_leaves(checkpoint, structs(checkpoint))["a"], array)


def test_write_refuses_to_overwrite(written):
    path, _ = written
    before = (path / "checkpoint").read_bytes()
    with pytest.raises(CheckpointError, match="exists; choose another path, or remove it first"):
        write_checkpoint(path, {"a": np.ones(2)}, step=8)
    assert (path / "checkpoint").read_bytes() == before


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fails(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(serialization, "msgpack_serialize", fails)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "c", some_params(), step=0)
    assert list(tmp_path.iterdir()) == []


# Errors.


def error_of(function, *args):
    with pytest.raises(CheckpointError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def read_all(path):
    checkpoint = open_checkpoint(path)
    return read_leaves(checkpoint, structs(checkpoint))


def test_missing_path(tmp_path):
    path = tmp_path / "checkpoint_9"
    assert error_of(open_checkpoint, path) == (
        f"{path}: no such file or folder; check the checkpoint's path"
    )


def test_folder_without_index(tmp_path):
    assert error_of(open_checkpoint, tmp_path) == (
        f"{tmp_path}: not a native T5X checkpoint; give a checkpoint_STEP folder, which holds a "
        "file named checkpoint"
    )


def test_folder_of_checkpoints(written):
    path, _ = written
    message = error_of(open_checkpoint, path.parent)
    assert message.endswith("give one of the folders in it: checkpoint_7")


def test_orbax_checkpoint_of_something_else(tmp_path):
    (tmp_path / "_CHECKPOINT_METADATA").touch()
    assert error_of(open_checkpoint, tmp_path) == (
        f"{tmp_path}: not a native T5X checkpoint; it is an Orbax checkpoint, but not one of a T5X "
        "model"
    )


@pytest.mark.parametrize(
    "content", [b"", b'model_checkpoint_path: "model.ckpt-0"\n', b"\x81\xa7version", b"\xc1"]
)
def test_undecodable_index(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(content)
    message = error_of(open_checkpoint, tmp_path)
    assert message.startswith(f"{tmp_path}: the index is unreadable, damaged or not from T5X (")
    assert message.endswith("; check access, or copy the checkpoint again")


@pytest.mark.parametrize("version", [0, 1, 4, None, "3", [3]])
def test_unsupported_version(written, version):
    path, _ = written
    edit_index(path, lambda content: content.update(version=version))
    message = error_of(open_checkpoint, path)
    assert f"{path}: version {version} of the T5X index is not supported, only 2 and 3" in message
    assert "with a newer T5X" in message


@pytest.mark.parametrize("tree", [{}, {"target": {}}, [], None])
def test_index_without_parameters(written, tree):
    path, _ = written
    edit_index(path, lambda content: content.update(optimizer=tree))
    message = error_of(open_checkpoint, path)
    assert message == f"{path}: contains no parameters; give a checkpoint of a T5X model"


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("PLACEHOLDER://a", "a str, not an array"),
        ({"driver": "zarr", "kvstore": {}, "metadata": {"shape": [2]}}, "dtype"),
        (
            {
                "driver": "zarr",
                "dtype": "float32",
                "kvstore": {"driver": "file", "path": "../elsewhere"},
                "metadata": {"shape": [2]},
            },
            "'../elsewhere' is not a folder beside the index",
        ),
    ],
)
def test_entry_that_is_not_understood(written, entry, cause):
    path, _ = written
    edit_index(path, lambda content: content["optimizer"]["target"].update(a=entry))
    message = error_of(open_checkpoint, path)
    assert f"{path}: the entry target/a of the index is invalid (" in message
    assert cause in message


NAME = "target.encoder.layers_0.mlp.wo.kernel"


@pytest.mark.parametrize("file", ["0.0", ".zarray"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_array(written, file, damage):
    path, _ = written
    part = path / NAME / file
    content = part.read_bytes()
    part.unlink()
    if damage == "truncated":
        part.write_bytes(content[: len(content) // 2])
    message = error_of(read_all, path)
    problem = "the array encoder/layers_0/mlp/wo/kernel is missing or damaged"
    assert message.startswith(f"{path}: {problem} (")
    assert f"{NAME}/{file}" in message
    assert message.endswith("; check access, or copy the checkpoint again")


@pytest.mark.parametrize("key", ["shape", "dtype"])
def test_array_that_is_not_the_one_in_the_index(written, key):
    path, _ = written

    def change(content):
        spec = content["optimizer"]["target"]["temperature"]
        spec["metadata"]["shape"] = [2] if key == "shape" else []
        spec["dtype"] = "float32" if key == "shape" else "float64"

    edit_index(path, change)
    message = error_of(read_all, path)
    assert message.startswith(f"{path}: the array temperature is missing or damaged (")
    assert f"{key} " in message.replace('"', " ")


def test_integers_are_not_read_as_parameters(written):
    path, _ = written
    bits = np.arange(4, dtype=np.uint16)
    edit_index(path, lambda content: content["optimizer"]["target"].update(a=bits))
    wanted = {"a": jax.ShapeDtypeStruct((4,), jnp.float32)}
    message = error_of(read_leaves, open_checkpoint(path), wanted)
    assert message == (
        f"{path}: a is stored as uint16, expected float32; give a checkpoint of floating-point "
        "parameters"
    )


def test_missing_leaves(written):
    path, _ = written
    wanted = {"temperature": (2,), "encoder/prompt/prompt/prompt": (3, 8)}
    wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in wanted.items()}
    message = error_of(read_leaves, open_checkpoint(path), wanted)
    assert message.startswith(f"{path}: the checkpoint does not fit the model")
    assert "missing: [encoder/prompt/prompt/prompt]" in message
    assert "mis-shaped: [temperature (), wanted (2,)]" in message
    assert "unexpected" not in message


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_any_damage_to_the_index_is_explained(written, damage):
    """Only CheckpointError is raised; a flipped byte, as in a name, may also go unnoticed."""
    path, _ = written
    content = (path / "checkpoint").read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        position = rng.randrange(len(content))
        damaged = bytearray(content[:position] if damage == "truncate" else content)
        if damage == "flip":
            damaged[position] ^= 1 << rng.randrange(8)
        (path / "checkpoint").write_bytes(damaged)
        message = ""
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            message = str(error)
        if message or damage == "truncate":
            assert message.startswith(f"{path}: ")
            assert "\n" not in message


def test_unreadable_index_is_explained(written, monkeypatch):
    path, _ = written

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(epath.Path(path)), "read_bytes", denied)
    message = error_of(open_checkpoint, path)
    assert "Permission denied" in message and "check access" in message


def test_nil_leaves_are_left_out(written):
    path, _ = written
    edit_index(path, lambda content: content["optimizer"]["target"].update(a=None))
    checkpoint = open_checkpoint(path)
    assert "a" not in checkpoint.target_shapes and "target/a" not in checkpoint.leaves
    wanted = {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    assert error_of(read_leaves, checkpoint, wanted).endswith("missing: [a]")


# Fit.


def test_fit_accepts_what_fits():
    check_fits({"a": (2, 3), "b": [4]}, {"a": [2, 3], "b": (4,)}, path="p")
    check_fits({"a": (2,), "x": (1,)}, {"a": (2,)}, path="p", ignore=lambda name: name == "x")


def test_fit_names_every_kind_of_problem():
    available = {"same": (1,), "wide": (2, 3), "tall": (5,), "old/b": (1,), "old/a": (1,)}
    wanted = {"same": (1,), "wide": (2, 4), "tall": (), "new": (1,)}
    with pytest.raises(CheckpointError) as caught:
        check_fits(available, wanted, path="gs://b/c", ignore=lambda name: name == "old/b")
    assert str(caught.value) == (
        "gs://b/c: the checkpoint does not fit the model (is it of the same size and method?); "
        "missing: [new]; unexpected: [old/a]; "
        "mis-shaped: [tall (5,), wanted (); wide (2, 3), wanted (2, 4)]"
    )


def test_fit_cuts_long_lists():
    wanted = {f"layers_{i}": (1,) for i in range(9, -1, -1)}
    with pytest.raises(CheckpointError) as caught:
        check_fits({}, wanted, path="p")
    shown = "; ".join(f"layers_{i}" for i in range(8))
    assert str(caught.value).endswith(f"missing: [{shown}; and 2 more]")
    with pytest.raises(CheckpointError) as caught:
        check_fits({}, dict(list(wanted.items())[2:]), path="p")
    assert str(caught.value).endswith(f"missing: [{shown}]")
