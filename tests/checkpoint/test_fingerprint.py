"""A backbone's fingerprint depends on its values alone, not on placement or file format."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from prompt_tuning import embedded, sharding
from prompt_tuning.checkpoint import backbone, fingerprint
from prompt_tuning.checkpoint.formats import safetensors_file
from prompt_tuning.errors import CheckpointError
from prompt_tuning.methods import Method, ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import initialize
from prompt_tuning.testing import random_leaves, tiny_config

RNG = np.random.default_rng(0)
LEAVES = {
    "a/kernel": RNG.normal(size=(16, 24)).astype(np.float32),
    "a/scale": RNG.normal(size=8).astype(np.float32),
}
HERE = fingerprint.of(LEAVES)


def changed(path: str, index: tuple[int, ...] | int, value: float) -> dict[str, np.ndarray]:
    leaf = LEAVES[path].copy()
    leaf[index] = value
    return LEAVES | {path: leaf}


@pytest.mark.parametrize("partitions", [1, 2, 8])
def test_it_does_not_hang_on_the_mesh(partitions):
    mesh = sharding.layout(partitions).mesh
    specs = {"a/kernel": P("data", "model"), "a/scale": P("model")}
    placed = {
        path: jax.device_put(leaf, NamedSharding(mesh, specs[path]))
        for path, leaf in LEAVES.items()
    }
    assert len(placed["a/kernel"].sharding.device_set) == 8
    assert fingerprint.of(placed) == HERE


def test_it_is_of_the_values_as_numpy_computes_it():
    """The definition in NumPy, so that no release of JAX or of this package changes it."""
    lines = []
    for path, leaf in LEAVES.items():
        bits = leaf.astype(jnp.bfloat16).view(np.uint16).astype(np.uint64).ravel()
        place = np.arange(leaf.size, dtype=np.uint64)
        low = np.uint64(2**32 - 1)
        mixed = place * np.uint64(0x9E3779B1) & low ^ bits * np.uint64(0x85EBCA77) & low
        mixed = (mixed ^ mixed >> np.uint64(16)) * np.uint64(0x85EBCA6B) & low
        mixed = (mixed ^ mixed >> np.uint64(13)) * np.uint64(0xC2B2AE35) & low
        total = int((mixed ^ mixed >> np.uint64(16)).sum() & low)
        lines.append(f"{path} {leaf.shape} {total:08x}")
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == HERE


def test_float32_and_its_bfloat16_copy_are_one_backbone():
    half = {path: leaf.astype(jnp.bfloat16) for path, leaf in LEAVES.items()}
    assert fingerprint.of(half) == HERE
    again = {path: leaf.astype(np.float32) for path, leaf in half.items()}
    assert fingerprint.of(again) == HERE


def test_a_nested_tree_and_leaves_by_path_are_one_backbone():
    nested = {"a": {"kernel": LEAVES["a/kernel"], "scale": LEAVES["a/scale"]}}
    assert fingerprint.of(nested) == HERE
    assert fingerprint.of(dict(reversed(LEAVES.items()))) == HERE


def test_scanned_layers_are_the_same_backbone():
    kernels = {f"encoder/layers_{i}/mlp/wo/kernel": LEAVES["a/kernel"] + i for i in range(3)}
    stacked = {"encoder/layers/mlp/wo/kernel": np.stack(list(kernels.values()))}
    scale = {"encoder/encoder_norm/scale": LEAVES["a/scale"]}
    assert fingerprint.of(stacked | scale) == fingerprint.of(kernels | scale)
    assert fingerprint.of(stacked | scale) != fingerprint.of(stacked)


def test_it_sees_each_difference():
    kernel = LEAVES["a/kernel"]
    swapped = kernel.copy()
    swapped[[0, 5]] = kernel[[5, 0]]
    others = {
        "one value": changed("a/kernel", (3, 4), kernel[3, 4] + 0.25),
        "the last value": changed("a/scale", -1, 0.0),
        "a sign of zero": changed("a/scale", -1, -0.0),
        "two rows swapped": LEAVES | {"a/kernel": swapped},
        "another name": {"b/kernel": kernel, "a/scale": LEAVES["a/scale"]},
        "another shape": LEAVES | {"a/kernel": kernel.reshape(24, 16)},
        "transposed": LEAVES | {"a/kernel": kernel.T},
        "a leaf less": {"a/kernel": kernel},
        "two leaves' values swapped": LEAVES | {"a/scale": kernel[0, :8]},
    }
    prints = {name: fingerprint.of(leaves) for name, leaves in others.items()}
    assert len({HERE, *prints.values()}) == len(prints) + 1


def test_each_swap_of_neighbours_and_each_bit_counts():
    flat = np.arange(1, 65, dtype=np.float32)
    prints = {fingerprint.of({"a": flat})}
    for i in range(63):
        other = flat.copy()
        other[[i, i + 1]] = flat[[i + 1, i]]
        prints.add(fingerprint.of({"a": other}))
    bits = flat.astype(jnp.bfloat16).view(np.uint16)
    for bit in range(16):
        other = bits.copy()
        other[7] ^= 1 << bit
        prints.add(fingerprint.of({"a": other.view(jnp.bfloat16)}))
    assert len(prints) == 1 + 63 + 16


def test_a_checkpoint_and_its_copy_in_another_dtype(tmp_path):
    stored = safetensors_file.stored(backbone.epath.Path(embedded.backbone()))
    name = "decoder/decoder_norm/scale"
    leaves = {name: np.asarray(stored[name]), "x": np.asarray(stored["encoder/encoder_norm/scale"])}
    copies = []
    for dtype in ("float32", "bfloat16"):
        backbone.save(tmp_path / f"{dtype}.safetensors", leaves, dtype)
        read = safetensors_file.stored(backbone.epath.Path(tmp_path / f"{dtype}.safetensors"))
        copies.append({path: np.asarray(leaf) for path, leaf in read.items()})
    assert fingerprint.of(copies[0]) == fingerprint.of(copies[1]) == fingerprint.of(leaves)


CONFIG = tiny_config()
ONE = sharding.layout(devices=jax.devices()[:1])
RANDOM = random_leaves(ParamSplit.of(CONFIG, ModelTuning()).shapes)
QUERY = "encoder/layers_1/attention/query/kernel"


def stored(folder, dtype: str = "float32", **values: float) -> str:
    """A file of random leaves, with values put into the query's kernel."""
    leaves = RANDOM | {QUERY: RANDOM[QUERY].copy()}
    for value in values.values():
        leaves[QUERY][2, 3] = value
    path = folder / f"{dtype}.safetensors"
    backbone.save(path, leaves, dtype)
    return str(path)


def read(path: str, **config):
    return initialize(dataclasses.replace(CONFIG, **config), Method(), layout=ONE, checkpoint=path)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_it_is_of_the_stored_weights_whatever_they_are_read_as(dtype, scan_layers, tmp_path):
    path = stored(tmp_path, dtype)
    leaves = safetensors_file.stored(backbone.epath.Path(path))
    expected = fingerprint.of({name: np.asarray(leaf) for name, leaf in leaves.items()})
    for frozen in ("float32", "bfloat16", "float16", "int8"):
        tuned = read(path, frozen_dtype=frozen, scan_layers=scan_layers)
        assert fingerprint.of(tuned.backbone, tuned.sums) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("frozen", ["float32", "bfloat16", "float16", "int8"])
def test_a_leaf_that_is_not_finite_is_named(value, frozen, tmp_path):
    """When it is read if it is rounded, which could hide it, else with the fingerprint."""
    path = stored(tmp_path, value=value)
    tuned = read(path, frozen_dtype=frozen) if frozen in ("float32", "bfloat16") else None
    look = (
        functools.partial(read, path, frozen_dtype=frozen)
        if tuned is None
        else functools.partial(fingerprint.identity, path, tuned.backbone, tuned.sums)
    )
    with pytest.raises(CheckpointError) as error:
        look()
    assert f"the backbone's leaf {QUERY} has a NaN or an infinity" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "fits"), [(65_504, True), (70_000, False), (-1e9, False)])
def test_values_above_the_largest_of_float16_are_refused(value, fits, tmp_path):
    path = stored(tmp_path, value=value)
    if fits:
        assert read(path, frozen_dtype="float16").backbone[QUERY].max() == value
        return
    with pytest.raises(
        CheckpointError, match=f"BACKBONE_DTYPE = 'float16': {QUERY} of .* bfloat16"
    ):
        read(path, frozen_dtype="float16")
