"""Scanned and rematerialised layers, and narrow frozen matrices: the same model, otherwise made."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import decoding, methods, sharding
from prompt_tuning.checkpoint import backbone, trained
from prompt_tuning.methods import Uniform
from prompt_tuning.methods.base import Method
from prompt_tuning.model.tuned import TunedModel, initialize, with_trained
from prompt_tuning.t5.config import T5Config
from prompt_tuning.testing import rounding, tiny_gemma
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.step import loss_fn
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import flatten

CONFIG = T5Config(64, 16, 2, 8, 32, 2, 2)
CONFIGS = {"t5": CONFIG, "t5gemma": tiny_gemma()}
T5_ALONE = pytest.mark.parametrize("config", ["t5"], indirect=True)
METHODS = {
    "prompt_tuning": methods.PromptTuning(3, initializer=Uniform()),
    "prefix_tuning": methods.PrefixTuning(3),
    "lora": methods.LoRA(2),
    "adapter": methods.Adapter(4),
    "ia3": methods.IA3(),
    "bitfit": methods.BitFit(),
    "model_tuning": methods.ModelTuning(),
}
# LoRA's leaves are in the layers, as most; prefix tuning's are beside them.
SLOW = frozenset(METHODS) - {"lora"}
# Two devices, for compiling for eight takes longer.
LAYOUT = sharding.layout(2, devices=jax.devices()[:2])
ROWS = np.random.default_rng(0).integers(2, 64, (4, 6))
BATCH = {
    "encoder_input_tokens": np.where(np.arange(6) < 5, ROWS, 0),
    "decoder_input_tokens": np.pad(ROWS[:, :3], ((0, 0), (1, 0))),
    "decoder_target_tokens": ROWS[:, 2:],
}


@pytest.fixture(scope="module", params=["t5", pytest.param("t5gemma", marks=pytest.mark.slow)])
def config(request) -> Config:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    method = methods.PromptTuning(1, initializer=Uniform())
    plain = initialize(config, method, layout=LAYOUT, seed=3)
    backbone.save(path, flatten(plain.frozen), "float32")
    return str(path)


@functools.cache
def made(config: Config, method: Method, checkpoint: str) -> TunedModel:
    return initialize(config, method, layout=LAYOUT, checkpoint=checkpoint, seed=1)


def loss_and_gradient(tuned: TunedModel, key: jax.Array | None = None):
    def objective(leaves):
        params = tuned.split.merge(leaves, tuned.frozen)
        return loss_fn(tuned.model, Loss(), params, batch, key)[0]

    with sharding.on(tuned.layout):
        batch = sharding.put_batch(BATCH, tuned.layout)
        return jax.jit(jax.value_and_grad(objective))(tuned.trained)


def backward(config: Config) -> float:
    return rounding.backward(config, 3 + 6, 4)


def assert_same(actual, expected, config: Config) -> None:
    """Losses and gradients are equal but for rounding, relative to the largest value of each."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=backward(config) * np.abs(b).max())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in METHODS],
)
def test_scanned_layers_are_the_same_model(name, config, checkpoint, tmp_path):
    """Loss, gradient and decoding; through files, which know no scan, in both directions."""
    plain = made(config, METHODS[name], checkpoint)
    leaves = {
        path: np.asarray(leaf) + np.random.default_rng(i).normal(0, 0.1, leaf.shape)
        for i, (path, leaf) in enumerate(sorted(flatten(plain.trained).items()))
    }
    files = [tmp_path / "plain.safetensors", tmp_path / "scanned.safetensors"]
    trained.save(files[0], {path: leaf.astype(np.float32) for path, leaf in leaves.items()})
    plain = with_trained(plain, files[0])
    scanned = with_trained(
        made(dataclasses.replace(config, scan_layers=True), METHODS[name], checkpoint), files[0]
    )
    assert "encoder/layers/attention/query/kernel" in scanned.split.shapes
    trained.save(files[1], {p: np.asarray(x) for p, x in flatten(scanned.trained).items()})
    again = flatten(with_trained(plain, files[1]).trained)
    for path, leaf in flatten(plain.trained).items():
        np.testing.assert_array_equal(again[path], leaf)

    loss, gradient = loss_and_gradient(plain)
    scanned_loss, scanned_gradient = loss_and_gradient(scanned)
    np.testing.assert_allclose(scanned_loss, loss, rtol=rounding.forward(config, 3 + 6, 4))
    norms = [
        jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))
        for tree in (gradient, scanned_gradient)
    ]
    np.testing.assert_allclose(*norms, rtol=backward(config))
    tokens = [
        decoding.greedy(tuned.model, tuned.params, BATCH["encoder_input_tokens"], 5)
        for tuned in (plain, scanned)
    ]
    np.testing.assert_array_equal(*tokens)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "scan"), [("minimal", False), ("full", True)])
def test_what_is_computed_again_changes_nothing(policy, scan, config, checkpoint):
    """With dropout: the masks are those of the forward pass."""
    config = dataclasses.replace(config, scan_layers=scan, dropout_rate=0.1)
    key = jax.random.key(5)
    method = METHODS["prompt_tuning"]
    wanted = loss_and_gradient(made(config, method, checkpoint), key)
    again = dataclasses.replace(config, remat=policy)
    actual = loss_and_gradient(made(again, method, checkpoint), key)
    assert_same(actual, wanted, config)


@T5_ALONE
def test_attention_of_jax_nn_changes_nothing(config, checkpoint):
    method = METHODS["prefix_tuning"]
    tuned = [
        made(dataclasses.replace(config, attention=name), method, checkpoint)
        for name in ("einsum", "xla")
    ]
    assert_same(*(loss_and_gradient(model) for model in tuned), config)
    tokens = (
        decoding.greedy(model.model, model.params, BATCH["encoder_input_tokens"], 5)
        for model in tuned
    )
    np.testing.assert_array_equal(*tokens)


def test_attention_without_dropout_says_so():
    with pytest.raises(ValueError, match=r"DROPOUT_RATE = 0\.0"):
        dataclasses.replace(CONFIG, attention="cudnn", dropout_rate=0.1)


@T5_ALONE
def test_cudnn_needs_a_gpu(config, checkpoint, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    config = dataclasses.replace(config, attention="cudnn")
    with pytest.raises(ValueError, match="ATTENTION = 'cudnn': needs a GPU"):
        loss_and_gradient(made(config, METHODS["prompt_tuning"], checkpoint))


@pytest.mark.slow
def test_frozen_matrices_in_bfloat16(config, checkpoint):
    """Products in bfloat16 read the same numbers, cast before or on the way."""
    config = dataclasses.replace(config, dtype="bfloat16")
    narrow = dataclasses.replace(config, frozen_dtype="bfloat16")
    wide, tuned = (made(c, METHODS["prompt_tuning"], checkpoint) for c in (config, narrow))
    dtypes = {path: leaf.dtype for path, leaf in flatten(tuned.params).items()}
    narrowed = {path for path, dtype in dtypes.items() if dtype == jnp.bfloat16}
    assert narrowed == {p for p in dtypes if p.endswith(("/kernel", "/embedding"))}
    assert dtypes["encoder/prompt/prompt/prompt"] == jnp.float32
    encoded = [
        tuned.model.apply({"params": t.params}, BATCH["encoder_input_tokens"], method="encode")
        for t in (wide, tuned)
    ]
    np.testing.assert_array_equal(encoded[0].states, encoded[1].states)
    # Only the output layer, float32 before, differs: both of its operands are rounded to 8 bits.
    np.testing.assert_allclose(*(loss_and_gradient(t)[0] for t in (wide, tuned)), rtol=2 * 2**-8)


def test_model_tuning_trains_in_float32(config, checkpoint):
    config = dataclasses.replace(config, dtype="bfloat16", frozen_dtype="bfloat16")
    tuned = made(config, METHODS["model_tuning"], checkpoint)
    assert {leaf.dtype for leaf in flatten(tuned.trained).values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (methods.LoRA(2, layers=[0]), "LORA_LAYERS"),
        (methods.Adapter(4, layers=[0]), "ADAPTER_LAYERS"),
        (methods.DeepPrompt(3), "deep prompts"),
    ],
)
def test_layers_that_differ_are_not_scanned(method, setting, config, checkpoint):
    with pytest.raises(ValueError, match=f"{setting}.*set SCAN_LAYERS = False"):
        made(dataclasses.replace(config, scan_layers=True), method, checkpoint)
