"""A Hugging Face T5 v1.1 with a PEFT prompt has the same outputs here (fixtures/peft_example).

The arrays ending in 64 were computed by PyTorch in float64 throughout.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from prompt_tuning import decoding
from prompt_tuning.checkpoint.backbone import open_leaves
from prompt_tuning.checkpoint.formats.huggingface import shapes_of
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.t5 import T5, T5Config
from prompt_tuning.training.loss import Loss
from prompt_tuning.transformer.paths import unflatten

FOLDER = Path(__file__).parents[1] / "fixtures" / "peft_example"
CONFIG = T5Config(
    vocab_size=128,
    d_model=32,
    num_heads=4,
    head_dim=8,
    d_ff=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
LENGTH = 5
MODELS = {"plain": T5(CONFIG), "prompt": T5(CONFIG, PromptTuning(length=LENGTH))}


@pytest.fixture(scope="module")
def backbone() -> dict[str, np.ndarray]:
    leaves = open_leaves(FOLDER / "backbone.safetensors", shapes_of(CONFIG))
    return {path: np.asarray(leaf) for path, leaf in leaves.items()}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "arrays.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def prompt() -> np.ndarray:
    """The adapter's rows for the encoder; PEFT stores as many for the decoder, which are unused."""
    return load_file(FOLDER / "adapter_model.safetensors")["prompt_embeddings"][:LENGTH]


@pytest.fixture(scope="module", params=MODELS)
def kind(request) -> str:
    return request.param


def forward(model: T5, params: dict, arrays: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encoder states, logits, and the mean cross entropy over labels."""
    tokens = arrays["input_ids"], arrays["decoder_input_ids"], np.maximum(arrays["labels"], 0)
    states = model.apply({"params": params}, tokens[0], method=model.encode).states
    logits = model.apply({"params": params}, *tokens)
    loss = Loss(z_loss=0.0, normalizing_factor="NUM_REAL_TARGET_TOKENS")
    return states, logits, loss(logits, tokens[2], arrays["labels"] != -100)[0]


@pytest.fixture(scope="module")
def outputs(kind, backbone, prompt, arrays) -> dict[str, jax.Array]:
    """Encoder states, logits and loss, and the gradient of the prompt."""

    def loss(added: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = unflatten(backbone | added)
        states, logits, value = forward(MODELS[kind], params, arrays)
        return value, {"states": states, "logits": logits, "loss": value}

    added = {PROMPT_PATH: prompt} if kind == "prompt" else {}
    gradient, values = jax.jit(jax.grad(loss, has_aux=True))(added)
    return values | gradient


def test_encoder_output_at_real_positions(kind, outputs, arrays):
    real = arrays["attention_mask"] > 0
    if kind == "prompt":
        real = np.pad(real, ((0, 0), (LENGTH, 0)), constant_values=True)
    expected = arrays[f"{kind}_encoder_output"][real]
    np.testing.assert_allclose(outputs["states"][real], expected, rtol=0, atol=2e-5)


def test_logits_at_real_labels(kind, outputs, arrays):
    real = arrays["labels"] != -100
    expected = arrays[f"{kind}_logits64"][real]
    np.testing.assert_allclose(outputs["logits"][real], expected, rtol=0, atol=1e-5)


def test_loss(kind, outputs, arrays):
    np.testing.assert_allclose(outputs["loss"], arrays[f"{kind}_loss64"], rtol=1e-6)


def test_prompt_gradient(kind, outputs, arrays):
    if kind == "prompt":  # the largest entry is 8e-3
        expected = arrays["prompt_grad64"][:LENGTH]
        np.testing.assert_allclose(outputs[PROMPT_PATH], expected, rtol=0, atol=1e-7)
    else:
        assert PROMPT_PATH not in outputs


def test_generated_tokens(backbone, prompt, arrays):
    """No sequence contains the end token, at which ours would stop."""
    expected = arrays["prompt_generated"][:, 1:]
    assert not (expected == decoding.EOS).any()
    greedy = jax.jit(functools.partial(decoding.greedy, MODELS["prompt"], length=8))
    tokens = greedy(unflatten(backbone | {PROMPT_PATH: prompt}), arrays["input_ids"])
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.slow
def test_generated_tokens_of_the_plain_backbone(backbone, arrays):
    greedy = jax.jit(functools.partial(decoding.greedy, MODELS["plain"], length=8))
    tokens = greedy(unflatten(backbone), arrays["input_ids"])
    np.testing.assert_array_equal(tokens, arrays["plain_generated"][:, 1:])
