"""T5 v1.1 in NumPy, float64, by hand, with hooks for the formulas of tuning methods.

Written from the model's conventions alone (-1e10 masks; padding zeroed after every norm). Of the
package, only shapes are used.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from prompt_tuning.families import init_shapes
from prompt_tuning.methods import Method
from prompt_tuning.t5 import T5Config
from prompt_tuning.transformer.paths import flatten

# Few buckets and a short furthest distance, so that 4 + 11 encoder positions use all of them.
CONFIG = T5Config(
    vocab_size=29,
    d_model=10,
    num_heads=3,
    head_dim=4,
    d_ff=14,
    num_encoder_layers=2,
    num_decoder_layers=2,
    relative_buckets=8,
    relative_max_distance=10,
)


class NumpyT5:
    """The plain model of a shape; a subclass overrides the hooks that its method acts at.

    A block is named by its path, such as "encoder/layers_0/attention".
    """

    def __init__(self, leaves: Mapping[str, np.ndarray], config: T5Config = CONFIG):
        self.config = config
        self.w = {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}

    # Hooks

    def prompt(self, stack: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors in front of a stack's input: [P, D] or [B, P, D]."""
        return np.zeros((0, self.config.d_model))

    def layer_input(self, layer: str, x: np.ndarray) -> np.ndarray:
        return x

    def linear(self, block: str, projection: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{block}/{projection}/kernel"]

    def attend(self, block, query, key, value, bias, mask) -> np.ndarray:
        """Query [B, H, Q, d], key and value [B, H, K, d], bias [H or 1, Q, K], mask [B, Q, K]."""
        return softmax_attention(query, key, value, bias, mask)

    def sublayer(self, block: str, y: np.ndarray) -> np.ndarray:
        return y

    def logits_of(self, hidden: np.ndarray) -> np.ndarray:
        return hidden @ self.w["decoder/logits_dense/kernel"]

    # The model

    def logits(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.decode(*self.encode(batch), batch)

    def loss(self, batch: Mapping[str, np.ndarray], z_loss: float) -> float:
        logits, targets = self.logits(batch), batch["decoder_target_tokens"]
        log_z = np.log(np.exp(logits).sum(-1))
        target = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return ((log_z - target + z_loss * log_z**2) * (targets > 0)).sum()

    def encode(self, batch):
        tokens = batch["encoder_input_tokens"]
        x, real = self.embedded("encoder", batch, tokens, tokens > 0)
        bias = self.position_bias("encoder", x.shape[1])
        mask = real[:, :, None] & real[:, None, :]
        for i in range(self.config.num_encoder_layers):
            layer = f"encoder/layers_{i}"
            x = self.layer_input(layer, x)
            y = self.norm(f"{layer}/pre_attention_layer_norm", x, real)
            x = x + self.attention(f"{layer}/attention", y, y, bias, mask)
            x = x + self.mlp(f"{layer}/mlp", self.norm(f"{layer}/pre_mlp_layer_norm", x, real))
        return self.norm("encoder/encoder_norm", x, real), real

    def decode(self, states, keys, batch):
        inputs, target = batch["decoder_input_tokens"], batch["decoder_target_tokens"] > 0
        real = (inputs > 0) | (np.arange(inputs.shape[1]) == 0)
        x, real, target = self.embedded("decoder", batch, inputs, real, target)
        length = x.shape[1]
        bias, no_bias = self.position_bias("decoder", length), np.zeros((1, length, keys.shape[1]))
        causal = np.tri(length, dtype=bool) & target[:, :, None] & target[:, None, :]
        cross = target[:, :, None] & keys[:, None, :]
        for i in range(self.config.num_decoder_layers):
            layer = f"decoder/layers_{i}"
            y = self.norm(f"{layer}/pre_self_attention_layer_norm", x, real)
            x = x + self.attention(f"{layer}/self_attention", y, y, bias, causal)
            y = self.norm(f"{layer}/pre_cross_attention_layer_norm", x, real)
            x = x + self.attention(f"{layer}/encoder_decoder_attention", y, states, no_bias, cross)
            x = x + self.mlp(f"{layer}/mlp", self.norm(f"{layer}/pre_mlp_layer_norm", x, real))
        return self.logits_of(self.norm("decoder/decoder_norm", x, real)[:, -inputs.shape[1] :])

    def embedded(self, stack, batch, tokens, *masks):
        x, prompt = self.w["token_embedder/embedding"][tokens], self.prompt(stack, batch)
        prompt = np.broadcast_to(prompt, (len(x), *prompt.shape[-2:]))
        front = np.ones(prompt.shape[:2], bool)
        masks = [np.concatenate([front, mask], axis=1) for mask in masks]
        return np.concatenate([prompt, x], axis=1), *masks

    def norm(self, name, x, real):
        scale = self.w[f"{name}/scale"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale * real[..., None]

    def attention(self, block, x, y, bias, mask):
        """x [B, Q, D] attends to y [B, K, D]."""

        def heads(projection, inputs):
            projected = self.linear(block, projection, inputs)
            split = (*inputs.shape[:2], self.config.num_heads, self.config.head_dim)
            return projected.reshape(split).transpose(0, 2, 1, 3)

        query, key, value = heads("query", x), heads("key", y), heads("value", y)
        mixed = self.attend(block, query, key, value, bias, mask).transpose(0, 2, 1, 3)
        return self.sublayer(block, self.linear(block, "out", mixed.reshape(*x.shape[:2], -1)))

    def mlp(self, block, x):
        hidden = gelu(self.linear(block, "wi_0", x)) * self.linear(block, "wi_1", x)
        return self.sublayer(block, self.linear(block, "wo", hidden))

    def position_bias(self, stack, length):
        """[H, query, key]."""
        both = stack == "encoder"
        ids = [[bucket(k - q, both, self.config) for k in range(length)] for q in range(length)]
        return self.w[f"{stack}/relpos_bias/rel_embedding"][:, np.array(ids)]


def softmax_attention(query, key, value, bias, mask):
    """As `NumpyT5.attend`; a row without any key is uniform."""
    scores = np.where(mask[:, None], query @ key.swapaxes(-1, -2) + bias, -1e10)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def bucket(relative: int, bidirectional: bool, config: T5Config = CONFIG) -> int:
    buckets, furthest = config.relative_buckets, config.relative_max_distance
    buckets = buckets // 2 if bidirectional else buckets
    later = buckets if bidirectional and relative > 0 else 0
    distance = abs(relative) if bidirectional else max(-relative, 0)
    half = buckets // 2
    if distance < half:
        return later + distance
    logarithmic = half + int(np.log(distance / half) / np.log(furthest / half) * (buckets - half))
    return later + min(logarithmic, buckets - 1)


def random_leaves(method: Method) -> dict[str, np.ndarray]:
    """Every leaf, float32: embeddings of size 1, scales about 1, the others by their first size."""
    rng = np.random.default_rng(1)
    leaves = {}
    for path, leaf in flatten(nn.unbox(init_shapes(CONFIG, method))).items():
        size = 0.3 if path.endswith("scale") else leaf.shape[0] ** -0.5
        size = 1.0 if path.endswith("embedding") else size
        leaves[path] = (rng.normal(0, size, leaf.shape) + path.endswith("scale")).astype(np.float32)
    return leaves


def random_batch() -> dict[str, np.ndarray]:
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
    }
