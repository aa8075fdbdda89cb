"""The frozen backbone in int8: rounding by hand, and the model that has the rounded weights."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prompt_tuning
from prompt_tuning import decoding, embedded, methods, sharding
from prompt_tuning.checkpoint import backbone, fingerprint
from prompt_tuning.errors import UserError
from prompt_tuning.families import init_shapes
from prompt_tuning.methods import SampledVocabulary, Uniform
from prompt_tuning.model import summary
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.runs import plan
from prompt_tuning.t5 import T5Config, preset
from prompt_tuning.testing import rounding, tiny_gemma
from prompt_tuning.training.loop import fit
from prompt_tuning.training.loss import Loss
from prompt_tuning.transformer import int8
from prompt_tuning.transformer.layers import Embed
from prompt_tuning.transformer.paths import flatten, unflatten

FLOAT = T5Config(64, 16, 4, 8, 32, 2, 2)
INT8 = dataclasses.replace(FLOAT, frozen_dtype="int8")
PROMPT = methods.PromptTuning(3, initializer=Uniform())
ONE = sharding.layout(devices=jax.devices()[:1])
ROWS = np.random.default_rng(0).integers(2, 64, (4, 6))
BATCH = {
    "encoder_input_tokens": np.where(np.arange(6) < 5, ROWS, 0),
    "decoder_input_tokens": np.pad(ROWS[:, :3], ((0, 0), (1, 0))),
    "decoder_target_tokens": ROWS[:, 2:],
}
FORWARD, BACKWARD = (bound(FLOAT, 3 + 6, 4) for bound in (rounding.forward, rounding.backward))
EMBEDDING = "token_embedder/embedding"
WO = "encoder/layers_0/mlp/wo/kernel"


def step_of(path: str, weights: np.ndarray) -> np.ndarray:
    """The largest value of a channel is 127.5 steps."""
    largest = np.abs(weights).max(-1 if path == EMBEDDING else -2, keepdims=True)
    return np.where(largest == 0, 1, largest / 127.5)


def restored(leaf) -> np.ndarray:
    return np.asarray(leaf.qvalue) * np.asarray(leaf.scale) if int8.is_int8(leaf) else leaf


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    backbone.save(path, flatten(initialize(FLOAT, PROMPT, layout=ONE, seed=3).frozen), "float32")
    return str(path)


def made(config: T5Config, checkpoint: str, method=PROMPT, layout=ONE) -> TunedModel:
    return initialize(config, method, layout=layout, checkpoint=checkpoint, seed=1)


@pytest.fixture(scope="module")
def plain(checkpoint) -> TunedModel:
    return made(FLOAT, checkpoint)


@pytest.fixture(scope="module")
def tuned(checkpoint) -> TunedModel:
    return made(INT8, checkpoint)


@pytest.fixture(scope="module")
def actual(tuned) -> dict[str, np.ndarray]:
    return outputs(tuned)


def outputs(tuned: TunedModel) -> dict[str, np.ndarray]:
    """Logits, loss and the gradient of the trained leaves."""

    def objective(trained, frozen, batch):
        params = tuned.split.merge(trained, frozen)
        logits = tuned.model.apply({"params": params}, **batch)
        return Loss()(logits, batch["decoder_target_tokens"], None)[0], logits

    with sharding.on(tuned.layout):
        batch = sharding.put_batch(BATCH, tuned.layout)
        compute = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (loss, logits), gradient = compute(tuned.trained, tuned.frozen, batch)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    return {"loss": np.asarray(loss), "logits": np.asarray(logits), "gradient": flat}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal but for rounding; scales multiply sums where the other model multiplies each weight."""
    bounds = {"loss": FORWARD, "logits": FORWARD, "gradient": BACKWARD}
    for name, value in expected.items():
        atol = 2 * bounds[name] * np.abs(value).max()
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=atol, err_msg=name)


def test_no_value_is_off_by_more_than_half_a_step(plain, tuned):
    floats, leaves = flatten(plain.frozen), flatten(tuned.frozen)
    narrow = {path for path, leaf in leaves.items() if int8.is_int8(leaf)}
    assert narrow == {path for path in leaves if path.endswith(("/kernel", "/embedding"))}
    for path in narrow:
        step = step_of(path, np.asarray(floats[path]))
        assert (leaves[path].qvalue.dtype, leaves[path].scale.dtype) == (np.int8, np.float32)
        np.testing.assert_allclose(leaves[path].scale, step, rtol=1e-6)
        assert (np.abs(restored(leaves[path]) - floats[path]) <= step * 0.501).all()


def test_a_channel_of_zeros():
    kernel = np.array([[0, 1], [0, -1], [0, 0.5]], np.float32)
    actual = int8.dequantize(int8.quantize(jnp.asarray(kernel), "any/kernel"))
    np.testing.assert_allclose(actual, kernel, atol=0.501 / 127.5)
    assert not actual[:, 0].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_off_by_half_a_step_of_each_weight(dtype):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(32, 8)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(5, 32)), dtype)
    exact = np.asarray(x, np.float64) @ kernel
    actual = int8.matmul(x, int8.quantize(jnp.asarray(kernel), "kernel"), x.dtype)
    bound = np.abs(np.asarray(x, np.float64)).sum(1)[:, None] * step_of("kernel", kernel) / 2
    off = np.abs(actual - exact)
    assert (off <= bound * 1.001).all()
    assert off.max() > 0


def test_the_backward_pass_keeps_numbers():
    leaf, x = int8.quantize(jnp.ones((32, 8)), "kernel"), jnp.ones((5, 32))
    _, backward = jax.vjp(lambda x: int8.matmul(x, leaf, x.dtype), x)
    kept = [(part.dtype, part.shape) for part in jax.tree.leaves(backward)]
    assert kept == [(jnp.int8, (32, 8)), (jnp.float32, (1, 8))]


@pytest.mark.slow
def test_a_t5gemma_of_rounded_weights(tmp_path):
    config = tiny_gemma(products="float32")
    backbone.save(
        tmp_path / "x.safetensors",
        flatten(initialize(config, PROMPT, layout=ONE, seed=3).frozen),
        "float32",
    )
    tuned = made(dataclasses.replace(config, frozen_dtype="int8"), tmp_path / "x.safetensors")
    leaves = {path: restored(leaf) for path, leaf in flatten(tuned.frozen).items()}
    assert sum(map(int8.is_int8, flatten(tuned.frozen).values())) == 2 + 2 * 7 + 2 * 11
    rounded = made(config, tmp_path / "x.safetensors")
    rounded = dataclasses.replace(rounded, frozen=unflatten(leaves))
    assert_same(outputs(tuned), outputs(rounded))


def test_model_is_the_one_of_the_rounded_weights(tuned, plain, actual):
    leaves = {path: restored(leaf) for path, leaf in flatten(tuned.frozen).items()}
    rounded = dataclasses.replace(plain, frozen=unflatten(leaves))
    assert_same(actual, outputs(rounded))
    inputs = BATCH["encoder_input_tokens"]
    tokens = [decoding.greedy(m.model, m.params, inputs, 5) for m in (tuned, rounded)]
    np.testing.assert_array_equal(*tokens)


def test_model_is_near_the_float_one(tuned, plain, actual):
    """Errors of the matrices, relative to each, add up at worst."""
    expected, floats = outputs(plain), flatten(plain.frozen)
    relative = 0.0
    for path, leaf in flatten(tuned.frozen).items():
        off = restored(leaf) - np.asarray(floats[path])
        relative += np.linalg.norm(off) / np.linalg.norm(floats[path])
    off = np.linalg.norm(actual["logits"] - expected["logits"])
    assert 0 < off <= relative * np.linalg.norm(expected["logits"])
    assert relative < 0.3
    a, b = actual["gradient"], expected["gradient"]
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def test_tied_logits():
    config = dataclasses.replace(FLOAT, tied_logits=True)
    rng = np.random.default_rng(2)
    table, x = (jnp.asarray(rng.normal(size=(n, 16)), jnp.float32) for n in (64, 3))
    leaf = int8.quantize(table, EMBEDDING)
    logits = Embed(config, "decoder").apply({"params": {"embedding": leaf}}, x, method="attend")
    np.testing.assert_allclose(logits, x @ restored(leaf).T, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_scanned_layers_are_the_same_model(tuned, actual, checkpoint):
    scanned = made(dataclasses.replace(INT8, scan_layers=True), checkpoint)
    stacked = flatten(scanned.frozen)["encoder/layers/mlp/wo/kernel"]
    for i in range(2):
        one = flatten(tuned.frozen)[f"encoder/layers_{i}/mlp/wo/kernel"]
        np.testing.assert_array_equal(stacked.qvalue[i], one.qvalue)
        np.testing.assert_array_equal(stacked.scale[i], one.scale)
    assert_same(outputs(scanned), actual)


def test_a_mesh_computes_what_one_device_computes(tuned, actual, checkpoint):
    divided = made(INT8, checkpoint, layout=sharding.layout(4))
    leaves = flatten(divided.frozen)
    for path, leaf in flatten(tuned.frozen).items():
        jax.tree.map(np.testing.assert_array_equal, leaves[path], leaf)
    wo = [part.addressable_shards[0].data.shape for part in jax.tree.leaves(leaves[WO])]
    assert wo == [(8, 16), (1, 16)]
    assert_same(outputs(divided), actual)


def test_scales_lie_as_their_channels():
    layout = sharding.layout(mesh={"fsdp": 4, "model": 2})
    shapes = ParamSplit.of(INT8, PROMPT).shapes
    places = flatten(sharding.shardings_of(init_shapes(INT8, PROMPT), layout))
    expected = {
        EMBEDDING: [(32, 4), (32, 1)],
        WO: [(16, 4), (1, 4)],
        "encoder/layers_0/mlp/wi_0/kernel": [(4, 16), (1, 16)],
    }
    for path, of_one in expected.items():
        parts = jax.tree.leaves(sharding.with_sharding(shapes[path], places[path]))
        assert [part.sharding.shard_shape(part.shape) for part in parts] == of_one


def batches(start: int):
    while True:
        yield {name: rows.astype(np.int32) for name, rows in BATCH.items()}


def test_a_run_changes_the_prompt_alone_and_goes_on(tuned, checkpoint, tmp_path):
    def run() -> TunedModel:
        settings = {"learning_rate": 0.3, "optimizer": optax.sgd, "total_steps": 2}
        return fit(made(INT8, checkpoint), model_dir=tmp_path, batches=batches, **settings)

    after, again = run(), run()
    jax.tree.map(np.testing.assert_array_equal, after.frozen, tuned.frozen)
    first, prompt, same = (jax.tree.leaves(m.trained)[0] for m in (tuned, after, again))
    assert np.abs(prompt - first).max() > 1e-3
    np.testing.assert_array_equal(same, prompt)
    saved = sum(file.stat().st_size for file in (tmp_path / "checkpoint_2").rglob("*"))
    assert saved < size(INT8)


def test_fingerprint_is_that_of_the_weights_that_were_read(plain, tuned, checkpoint):
    scanned = made(dataclasses.replace(INT8, scan_layers=True), checkpoint)
    expected = fingerprint.of(plain.backbone)
    for model in (tuned, scanned):
        assert fingerprint.of(model.backbone, model.sums) == expected
    assert fingerprint.of(tuned.backbone) != expected


@pytest.mark.parametrize("scan", [False, True])
def test_one_leaf_is_there_in_float_at_a_time(checkpoint, scan, monkeypatch):
    def float_bytes() -> int:
        large = (x for x in jax.live_arrays() if x.ndim == 2 and min(x.shape) > 4)
        return sum(x.nbytes for x in large if x.dtype == jnp.float32)

    def sum_of(path, leaf):
        seen.append(float_bytes() - before)
        return original(path, leaf)

    seen, before, original = [], float_bytes(), fingerprint.sum_of
    monkeypatch.setattr(fingerprint, "sum_of", sum_of)
    made(dataclasses.replace(INT8, scan_layers=scan), checkpoint)
    relative_positions = 2 * 4 * 4 * 32
    assert len(seen) == 2 * (4 + 3) + 2 * (8 + 3) + 2
    assert max(seen) <= 4 * 64 * 16 + relative_positions


def size(config: T5Config) -> int:
    leaves = jax.tree.leaves(ParamSplit.of(config, PROMPT).shapes)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def test_a_quarter_of_the_bytes():
    whole, narrow = (size(preset("t5_1_1_small", frozen_dtype=d)) for d in ("float32", "int8"))
    assert 0.25 < narrow / whole < 0.255


def test_plan_counts_numbers_and_scales():
    config, layout = dataclasses.replace(INT8, dropout_rate=0.1), sharding.layout(4)
    _, weights = plan.lowered_step(
        config,
        method=PROMPT,
        layout=layout,
        lengths={"inputs": 6, "targets": 4},
        batch_size=8,
        optimizer=optax.sgd,
        loss=Loss(),
        num_microbatches=1,
    )
    attention, mlp = 4 * 16 * 32, 3 * 16 * 32
    numbers = 2 * 64 * 16 + 2 * (attention + mlp) + 2 * (2 * attention + mlp)
    of_attention, of_mlp = 3 * 32 + 16, 2 * 32 + 16
    scales = 2 * 64 + 2 * (of_attention + of_mlp) + 2 * (2 * of_attention + of_mlp)
    others = 16 * (2 * 2 + 2 * 3 + 2) + 2 * 4 * 32 + 3 * 16
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in weights) == numbers + 4 * (
        scales + others
    )
    of_wo = [leaf for leaf in weights if leaf.shape in ((32, 16), (1, 16)) and leaf.dtype != int]
    assert {leaf.sharding.shard_shape(leaf.shape) for leaf in of_wo} == {(8, 16), (1, 16)}
    lines = summary.plan(config, PROMPT, layout).splitlines()
    assert any(WO in line and "int8 (32, 16)" in line for line in lines)


def test_initialisers_and_penalties_read_rounded_rows(tuned, checkpoint):
    table = restored(flatten(tuned.frozen)[EMBEDDING])
    sampled = made(INT8, checkpoint, methods.PromptTuning(3, initializer=SampledVocabulary()))
    (prompt,) = jax.tree.leaves(sampled.trained)
    assert all((table == row).all(axis=1).any() for row in np.asarray(prompt))
    wayward = methods.Wayward(3, initializer=Uniform(), text="near", token_ids=(7, 9))
    leaves = flatten(made(INT8, checkpoint, wayward).params)
    prompt = np.asarray(leaves["encoder/prompt/prompt/prompt"])
    expected = np.square(prompt[:2] - table[[7, 9]]).sum(axis=-1).mean()
    np.testing.assert_allclose(wayward.penalty(leaves), expected, rtol=1e-5)


def test_what_is_trained_stays_float32(checkpoint):
    whole = made(INT8, checkpoint, methods.ModelTuning())
    assert not jax.tree.leaves(whole.frozen)
    assert {leaf.dtype for leaf in jax.tree.leaves(whole.trained)} == {jnp.dtype("float32")}
    biases = made(INT8, checkpoint, methods.BitFit())
    assert {leaf.dtype for leaf in jax.tree.leaves(biases.trained)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("method", [methods.LoRA(2), methods.IA3()])
def test_nothing_merges_into_int8(method, checkpoint):
    leaves = flatten(made(INT8, checkpoint, method).params)
    with pytest.raises(ValueError, match="BACKBONE_DTYPE = 'int8': nothing merges"):
        method.merge(leaves)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"BACKBONE_DTYPE = 'int8'.*'prompt-tuning\[int8\]'"):
        ParamSplit.of(INT8, PROMPT)
    assert ParamSplit.of(FLOAT, PROMPT).frozen


def test_activations_are_not_int8():
    with pytest.raises(ValueError, match=r"ACTIVATION_DTYPE = 'int8': choose from float32"):
        dataclasses.replace(FLOAT, dtype="int8")


def test_serving_takes_prompts_of_the_float_backbone():
    """Their cards name it; an ensemble too."""
    texts = ["The team won the final after extra time.", "Shares fell as the bank raised rates."]
    prompt = f"{embedded.prompts()}/demo_topics.npy"
    actual = []
    for dtype in ("float32", "int8"):
        config = preset("demo", frozen_dtype=dtype)
        files = embedded.backbone(), embedded.vocabulary()
        model = prompt_tuning.load(config, *files, layout=ONE, input_length=64)
        labels = ("business", "health", "politics", "science", "sport")
        model.add_task("topics", prompt, labels)
        model.add_task("both", [prompt, np.load(prompt) * 0.9], labels)
        answers = model.classify(texts, ["topics", "both"])
        actual.append((repr(model), model.fingerprint, answers))
    (shown, identity, floats), (*others, narrow) = actual
    assert others == [shown, identity]
    for wanted, got in zip(floats, narrow, strict=True):
        assert (got.label, got.votes) == (wanted.label, wanted.votes)
        off = [abs(got.probabilities[name] - wanted.probabilities[name]) for name in got.votes]
        assert 0 < max(off) < 0.05
