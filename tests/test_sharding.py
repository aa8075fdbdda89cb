"""Sharding on eight simulated CPU devices: any mesh computes what one device computes."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from prompt_tuning import sharding
from prompt_tuning.families import init_shapes, model
from prompt_tuning.gemma.config import StackConfig, T5GemmaConfig
from prompt_tuning.methods import ModelTuning, PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.sharding import Layout
from prompt_tuning.t5 import T5Config
from prompt_tuning.testing import random_batch, random_leaves, rounding
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor, only_trained
from prompt_tuning.training.step import TrainState, make_train_step
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import flatten, unflatten

CONFIG = T5Config(64, 16, 8, 4, 32, 1, 1)
STACK = StackConfig(16, 1, 32, heads=16, key_heads=8, head_dim=4, query_scalar=4, window=4)
CONFIGS: dict[str, Config] = {"t5": CONFIG, "t5gemma": T5GemmaConfig(64, STACK, STACK)}
METHOD = PromptTuning(length=3)
EMBEDDING = "token_embedder/embedding"
SPLIT = ParamSplit.of(CONFIG, METHOD)


LEAVES = random_leaves(SPLIT.shapes, seed=5)
BATCH = random_batch(5, inputs=10, targets=4)


def shardings(layout: Layout, method=METHOD, config: Config = CONFIG) -> dict[str, NamedSharding]:
    return flatten(sharding.shardings_of(init_shapes(config, method), layout))


def leaves(config: Config) -> dict[str, np.ndarray]:
    return random_leaves(ParamSplit.of(config, METHOD).shapes, seed=5)


def one_step(layout: Layout, config: Config) -> dict[str, np.ndarray]:
    """Loss, prompt gradient and prompt after a train step."""
    split, values = ParamSplit.of(config, METHOD), leaves(config)
    # A trace that forgets at once keeps the gradient in the optimizer's state, for us to read.
    optimizer = only_trained(optax.chain(optax.trace(decay=0.0), adafactor()), split)
    places = shardings(layout, config=config)
    placed = {path: jax.device_put(values[path], place) for path, place in places.items()}
    trained, frozen = split.split(unflatten(placed))
    with sharding.on(layout):
        step = jax.jit(make_train_step(model(config, METHOD), split, optimizer, Loss()))
        state = TrainState.create(trained, optimizer)
        state, metrics = step(state, frozen, sharding.put_batch(BATCH, layout), None)
    gradient = optax.tree.get(state.opt_state, "trace")
    return {
        "loss": metrics["loss"],
        "gradient": np.asarray(flatten(gradient)[PROMPT_PATH]),
        "prompt": np.asarray(flatten(state.trained)[PROMPT_PATH]),
    }


@functools.cache
def on_one_device(family: str) -> dict[str, np.ndarray]:
    return one_step(sharding.layout(devices=jax.devices()[:1]), CONFIGS[family])


@pytest.mark.parametrize("family", CONFIGS)
def test_one_step_has_something_to_compare(family):
    alone = on_one_device(family)
    gradient = np.abs(alone["gradient"])
    backward = rounding.backward(CONFIGS[family], 3 + 10, 4)
    assert gradient.min() > 3 * backward * gradient.max()  # else rounding decides a sign
    change = alone["prompt"] - leaves(CONFIGS[family])[PROMPT_PATH]
    np.testing.assert_allclose(np.abs(change), 0.3, atol=1e-3)


MESHES = (
    {"data": 8},
    {"data": 4, "model": 2},
    {"data": 2, "model": 4},
    {"model": 8},
    {"fsdp": 8},
    {"data": 2, "fsdp": 2, "model": 2},
)


EACH_AXIS = {"data": 2, "fsdp": 2, "model": 2}
BY_DEFAULT = (("t5", EACH_AXIS), ("t5gemma", {"data": 4, "model": 2}))


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        pytest.param(*case, marks=() if case in BY_DEFAULT else pytest.mark.slow, id=str(case))
        for case in itertools.product(CONFIGS, MESHES)
    ],
)
def test_a_mesh_computes_what_one_device_computes(family, mesh):
    """Loss and gradient but for the order of additions; the step, 0.3 sign(g), is then the same."""
    config = CONFIGS[family]
    bounds = {
        "loss": rounding.forward(config, 3 + 10, 4),
        "gradient": rounding.backward(config, 3 + 10, 4),
        "prompt": rounding.rounding(100),
    }
    for name, value in one_step(sharding.layout(mesh=mesh), config).items():
        expected = on_one_device(family)[name]
        atol = bounds[name] * np.abs(expected).max()
        np.testing.assert_allclose(value, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, {"data": 8, "model": 1}),
        ({"num_partitions": 4}, {"data": 2, "model": 4}),
        ({"model_parallel_submesh": (2, 1, 1, 2)}, {"data": 2, "model": 4}),
        ({"mesh": {"fsdp": 4, "model": 2}}, {"data": 1, "model": 2, "fsdp": 4}),
    ],
)
def test_ways_to_say_a_mesh(settings, sizes):
    assert dict(sharding.layout(**settings).mesh.shape) == sizes


def test_rules_are_replaced_and_added():
    rules = (("vocab", None), ("joined_kv", ["data", "model"]), ("experts", "data"))
    layout = sharding.layout(4, axis_rules=rules)
    assert layout.spec("vocab", "joined_kv") == P(None, ("data", "model"))
    assert layout.spec("experts") == P("data")
    assert layout.spec("batch", "mlp") == P("data", "model")  # T5X's, as before
    path = "encoder/layers_0/attention/query/kernel"
    assert shardings(layout)[path].shard_shape(LEAVES[path].shape) == (16, 4)


# Leaf to the side that is divided over the model axis.
DIVIDED = {
    EMBEDDING: 0,
    "decoder/logits_dense/kernel": 1,
    "encoder/layers_0/attention/query/kernel": 1,
    "encoder/layers_0/attention/out/kernel": 0,
    "encoder/layers_0/mlp/wi_0/kernel": 1,
    "encoder/layers_0/mlp/wo/kernel": 0,
    "encoder/relpos_bias/rel_embedding": 0,
    "encoder/encoder_norm/scale": None,
    PROMPT_PATH: None,
}


@pytest.mark.parametrize("num_partitions", [2, 4])
@pytest.mark.parametrize("path", DIVIDED)
def test_parameters_are_divided_over_the_model_axis(path, num_partitions):
    place, shape = shardings(sharding.layout(num_partitions))[path], LEAVES[path].shape
    expected = list(shape)
    if DIVIDED[path] is not None:
        expected[DIVIDED[path]] //= num_partitions
    assert place.shard_shape(shape) == tuple(expected)


@pytest.mark.parametrize(("num_partitions", "path"), [(2, "encoder/layers_0/mlp/wi_0/kernel")])
def test_fsdp_divides_the_other_side_too(num_partitions, path):
    layout = sharding.layout(mesh={"fsdp": 4, "model": num_partitions})
    places = shardings(layout)
    assert places[path].spec == P("fsdp", "model")
    assert places[PROMPT_PATH].is_fully_replicated


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_rows_are_divided_over_data_and_fsdp(mesh):
    layout = sharding.layout(mesh=mesh)
    parts = 8 // mesh.get("model", 1)
    assert layout.row_shards == parts
    for name, rows in sharding.put_batch(BATCH, layout).items():
        np.testing.assert_array_equal(rows, BATCH[name])
        shapes = {shard.data.shape for shard in rows.addressable_shards}
        assert shapes == {(8 // parts, BATCH[name].shape[1])}


def test_optimizer_state_lies_as_its_leaf_does():
    """With nothing frozen: second moments as their leaves, the rest replicated."""
    layout = sharding.layout(4)
    places, shapes = shardings(layout, ModelTuning()), ParamSplit.of(CONFIG, ModelTuning()).shapes
    trained = unflatten(
        {path: sharding.with_sharding(leaf, places[path]) for path, leaf in shapes.items()}
    )
    state = jax.eval_shape(adafactor().init, trained)
    slots = sharding.like_trained(state, trained, layout)
    moments, unused = (flatten(optax.tree.get(slots, slot)) for slot in ("v", "v_row"))
    for path, leaf in flatten(trained).items():
        assert moments[path] == leaf.sharding, path
        assert unused[path].is_fully_replicated, path
    assert all(
        count.is_fully_replicated for _, count in optax.tree.get_all_with_path(slots, "count")
    )


def test_logical_axis_without_a_rule():
    boxed = {"kernel": nn.LogicallyPartitioned(jnp.zeros((2, 2)), ("embed", "experts"))}
    with pytest.raises(ValueError, match=r"without a rule.*\['experts'\]"):
        sharding.shardings_of(boxed, sharding.layout())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[({"num_partitions": n}, f"NUM_PARTITIONS = {n}: .*devices, 8") for n in (-1, 0, 3, 16)],
        ({"model_parallel_submesh": (3, 1)}, r"MODEL_PARALLEL_SUBMESH = \(3, 1\): .*devices, 8"),
        ({"mesh": {"dat": 8}}, "MESH = .*nothing is divided by dat"),
        ({"mesh": {"data": 3}}, r"MESH = {'data': 3}: .*devices, 8"),
        ({"mesh": {"data": -8, "model": -1}}, "MESH = .*devices, 8"),
        ({"mesh": {"data": 8}, "num_partitions": 2}, "NUM_PARTITIONS = 2, MESH = .*one of them"),
        ({"axis_rules": (("mlp", "fsdp"),)}, "AXIS_RULES: 'mlp' .* fsdp; .* data, model"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        sharding.layout(**settings)


def test_a_leaf_that_the_mesh_does_not_divide():
    six_heads = T5Config(64, 16, 6, 8, 32, 1, 1)
    message = "decoder/relpos_bias/rel_embedding .*: 4 devices for 6; choose another NUM_PARTITIONS"
    with pytest.raises(ValueError, match=message):
        sharding.shardings_of(init_shapes(six_heads, METHOD), sharding.layout(4))


@pytest.mark.parametrize(("batch_size", "num_partitions"), [(12, 1), (6, 2), (0, 4), (-4, 4)])
def test_batch_that_does_not_divide(batch_size, num_partitions):
    layout = sharding.layout(num_partitions)
    with pytest.raises(ValueError, match=f"BATCH_SIZE = {batch_size}: .*{8 // num_partitions} dev"):
        sharding.check_batch_size(batch_size, layout)


@pytest.mark.parametrize(("batch_size", "num_partitions"), [(8, 1), (12, 2), (2, 4), (1, 8)])
def test_batch_that_divides(batch_size, num_partitions):
    """Against the mistakes above: the smallest sizes, and others, that are none."""
    assert sharding.check_batch_size(batch_size, sharding.layout(num_partitions)) is None
