"""The model and the prompt's gradient against a second implementation: NumPy, float64, by hand.

Written from the model's conventions alone (T5 v1.1; -1e10 masks; padding zeroed after every norm).
"""

import flax.linen as nn
import jax
import numpy as np
import pytest

from prompt_tuning.loss import Loss
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.params import flatten, unflatten
from prompt_tuning.t5 import T5, T5Config
from prompt_tuning.t5.network import init_shapes
from prompt_tuning.train_step import loss_fn

# Few buckets and a short furthest distance, so that 4 + 11 encoder positions use all of them.
BUCKETS, DISTANCE, HEADS, WIDTH, LAYERS = 8, 10, 3, 4, 2
CONFIG = T5Config(
    vocab_size=29,
    d_model=10,
    num_heads=HEADS,
    head_dim=WIDTH,
    d_ff=14,
    num_encoder_layers=LAYERS,
    num_decoder_layers=LAYERS,
    relative_buckets=BUCKETS,
    relative_max_distance=DISTANCE,
)
LENGTH = 4
MODEL = T5(CONFIG, PromptTuning(length=LENGTH))
Z_LOSS = 1e-4


def norm(w, name, x, real):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}/scale"] * real[..., None]


def bucket(relative: int, bidirectional: bool) -> int:
    buckets = BUCKETS // 2 if bidirectional else BUCKETS
    later = buckets if bidirectional and relative > 0 else 0
    distance = abs(relative) if bidirectional else max(-relative, 0)
    half = buckets // 2
    if distance < half:
        return later + distance
    logarithmic = half + int(np.log(distance / half) / np.log(DISTANCE / half) * (buckets - half))
    return later + min(logarithmic, buckets - 1)


def position_bias(w, stack, length):
    """[heads, query, key]."""
    ids = [[bucket(k - q, stack == "encoder") for k in range(length)] for q in range(length)]
    return w[f"{stack}/relpos_bias/rel_embedding"][:, np.array(ids)]


def attention(w, name, x, y, bias, mask):
    """x [B, Q, D] attends to y [B, K, D]; mask [B, Q, K]; a row without any key is uniform."""

    def heads(part, inputs):
        projected = inputs @ w[f"{name}/{part}/kernel"]
        return projected.reshape(*inputs.shape[:2], HEADS, WIDTH).transpose(0, 2, 1, 3)

    scores = heads("query", x) @ heads("key", y).swapaxes(-1, -2) + bias
    scores = np.where(mask[:, None], scores, -1e10)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = (weights @ heads("value", y)).transpose(0, 2, 1, 3)
    return mixed.reshape(*x.shape[:2], HEADS * WIDTH) @ w[f"{name}/out/kernel"]


def mlp(w, name, x):
    gate = x @ w[f"{name}/wi_0/kernel"]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gelu * (x @ w[f"{name}/wi_1/kernel"])) @ w[f"{name}/wo/kernel"]


def encode(w, tokens):
    x, real = w["token_embedder/embedding"][tokens], tokens > 0
    prompt = np.broadcast_to(w[PROMPT_PATH], (len(x), LENGTH, x.shape[-1]))
    x = np.concatenate([prompt, x], axis=1)
    real = np.concatenate([np.ones((len(x), LENGTH), bool), real], axis=1)
    bias, mask = position_bias(w, "encoder", x.shape[1]), real[:, :, None] & real[:, None, :]
    for i in range(LAYERS):
        layer = f"encoder/layers_{i}"
        y = norm(w, f"{layer}/pre_attention_layer_norm", x, real)
        x = x + attention(w, f"{layer}/attention", y, y, bias, mask)
        x = x + mlp(w, f"{layer}/mlp", norm(w, f"{layer}/pre_mlp_layer_norm", x, real))
    return norm(w, "encoder/encoder_norm", x, real), real


def decode(w, states, keys, inputs, targets):
    x, length = w["token_embedder/embedding"][inputs], inputs.shape[1]
    real = (inputs > 0) | (np.arange(length) == 0)
    target = targets > 0
    bias = position_bias(w, "decoder", length)
    causal = np.tri(length, dtype=bool) & target[:, :, None] & target[:, None, :]
    cross = target[:, :, None] & keys[:, None, :]
    for i in range(LAYERS):
        layer = f"decoder/layers_{i}"
        y = norm(w, f"{layer}/pre_self_attention_layer_norm", x, real)
        x = x + attention(w, f"{layer}/self_attention", y, y, bias, causal)
        y = norm(w, f"{layer}/pre_cross_attention_layer_norm", x, real)
        x = x + attention(w, f"{layer}/encoder_decoder_attention", y, states, 0.0, cross)
        x = x + mlp(w, f"{layer}/mlp", norm(w, f"{layer}/pre_mlp_layer_norm", x, real))
    return norm(w, "decoder/decoder_norm", x, real) @ w["decoder/logits_dense/kernel"]


def logits_of(w, batch):
    states, keys = encode(w, batch["encoder_input_tokens"])
    return decode(w, states, keys, batch["decoder_input_tokens"], batch["decoder_target_tokens"])


def loss_of(w, batch):
    logits, targets = logits_of(w, batch), batch["decoder_target_tokens"]
    log_z = np.log(np.exp(logits).sum(-1))
    target = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return ((log_z - target + Z_LOSS * log_z**2) * batch["decoder_loss_weights"]).sum()


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Rows of 11, 6 and 1 input tokens and 6, 3 and 1 targets; EOS (1) last, then padding."""
    rng = np.random.default_rng(0)

    def rows(length, lengths):
        tokens = rng.integers(3, CONFIG.vocab_size, (len(lengths), length), np.int32)
        ends = np.array(lengths)[:, None] - 1
        position = np.arange(length)
        return np.where(position < ends, tokens, position == ends).astype(np.int32)

    targets = rows(6, (6, 3, 1))
    return {
        "encoder_input_tokens": rows(11, (11, 6, 1)),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


@pytest.fixture(scope="module")
def params() -> dict:
    """Every leaf, random: embeddings of size 1, norm scales about 1, kernels by fan-in."""
    rng = np.random.default_rng(1)
    leaves = {}
    for path, leaf in flatten(nn.unbox(init_shapes(CONFIG, MODEL.sites))).items():
        size = 0.3 if path.endswith("scale") else leaf.shape[0] ** -0.5
        size = 1.0 if path.endswith("embedding") else size
        leaves[path] = (rng.normal(0, size, leaf.shape) + path.endswith("scale")).astype(np.float32)
    return unflatten(leaves)


@pytest.fixture(scope="module")
def float64(params) -> dict[str, np.ndarray]:
    return {path: leaf.astype(np.float64) for path, leaf in flatten(params).items()}


def test_logits(params, float64, batch):
    tokens = [
        batch[f"{key}_tokens"] for key in ("encoder_input", "decoder_input", "decoder_target")
    ]
    ours = jax.jit(MODEL.apply)({"params": params}, *tokens)
    reference = logits_of(float64, batch)
    assert np.abs(reference).max() > 1  # not all near zero, where any two models agree
    np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5)


def test_prompt_gradient_by_finite_differences(params, float64, batch):
    def loss(prompt):
        changed = unflatten(flatten(params) | {PROMPT_PATH: prompt})
        return loss_fn(MODEL, Loss(z_loss=Z_LOSS), changed, batch, None)[0]

    prompt = float64[PROMPT_PATH]
    value, gradient = jax.jit(jax.value_and_grad(loss))(prompt.astype(np.float32))
    np.testing.assert_allclose(value, loss_of(float64, batch), rtol=1e-6)
    for row, column in [(0, 0), (0, 9), (1, 4), (2, 7), (3, 2), (3, 9)]:
        step = np.zeros_like(prompt)
        step[row, column] = 1e-5
        above, below = (
            loss_of(float64 | {PROMPT_PATH: prompt + sign * step}, batch) for sign in (1, -1)
        )
        np.testing.assert_allclose(
            gradient[row, column], (above - below) / 2e-5, rtol=1e-5, atol=2e-6
        )
