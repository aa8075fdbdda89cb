"""A T5Gemma of one layer per stack, computed in NumPy from the formulas.

Gemma 2's report (arXiv 2408.00118), sections 2 and 3, and T5Gemma's (arXiv 2504.06225), section 3.
"""

import numpy as np

from prompt_tuning.gemma import StackConfig, T5Gemma, T5GemmaConfig
from prompt_tuning.testing import padded_tokens, rounding, tiny_model
from prompt_tuning.testing.methods import logits
from prompt_tuning.transformer.paths import flatten

# Stacks of two widths; three heads share a key; the window is shorter than the input.
CONFIG = T5GemmaConfig(
    32,
    StackConfig(12, 1, 20, 6, 2, 4, query_scalar=5, window=2, attention_cap=2.0),
    StackConfig(8, 1, 16, 3, 1, 6, query_scalar=3, window=3, attention_cap=1.5),
    start_token=2,
    logit_cap=4.0,
    products="float32",
)


class Reference:
    """Leaves by path, in float64."""

    def __init__(self, leaves: dict) -> None:
        self.leaves = {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}

    def __call__(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        encoder, decoder = CONFIG.encoder, CONFIG.decoder
        x = self.leaves["token_embedder/embedding"][inputs] * np.sqrt(encoder.width)
        positions = np.arange(inputs.shape[1])
        apart = positions[:, None] - positions[None]
        seen = (inputs > 0)[:, None] & (abs(apart) <= encoder.window)[None]
        x = self.block(x, "encoder/layers_0", "attention", lambda y, at: self.attention(
            y, y, at, encoder, seen, positions))  # fmt: skip
        x = self.block(x, "encoder/layers_0", "mlp", self.feed_forward)
        encoded = self.norm(x, "encoder/encoder_norm")

        tokens = np.pad(targets, ((0, 0), (1, 0)), constant_values=2)[:, :-1]
        table = self.leaves["decoder_token_embedder/embedding"]
        x = table[tokens] * np.sqrt(decoder.width)
        positions = np.arange(tokens.shape[1])
        apart = positions[:, None] - positions[None]
        causal = np.broadcast_to((apart >= 0) & (apart < decoder.window), (len(x), *apart.shape))
        x = self.block(x, "decoder/layers_0", "self_attention", lambda y, at: self.attention(
            y, y, at, decoder, causal, positions))  # fmt: skip
        across = np.broadcast_to((inputs > 0)[:, None], (*tokens.shape, inputs.shape[1]))
        x = self.block(x, "decoder/layers_0", "encoder_decoder_attention", lambda y, at:
            self.attention(y, encoded, at, decoder, across, None))  # fmt: skip
        x = self.block(x, "decoder/layers_0", "mlp", self.feed_forward)
        scores = self.norm(x, "decoder/decoder_norm") @ table.T
        return CONFIG.logit_cap * np.tanh(scores / CONFIG.logit_cap)

    def block(self, x, layer, block, function):
        """The residual sum of x and the norm of a function of the norm of x."""
        name = "cross_attention" if block == "encoder_decoder_attention" else block
        y = function(self.norm(x, f"{layer}/pre_{name}_layer_norm"), f"{layer}/{block}")
        return x + self.norm(y, f"{layer}/post_{name}_layer_norm")

    def norm(self, x, at):
        rms = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x / rms * (1 + self.leaves[f"{at}/scale"])

    def kernel(self, at):
        return self.leaves[f"{at}/kernel"]

    def feed_forward(self, y, at):
        gate, up = y @ self.kernel(f"{at}/wi_0"), y @ self.kernel(f"{at}/wi_1")
        gelu = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return (gelu * up) @ self.kernel(f"{at}/wo")

    def attention(self, y, source, at, stack, seen, positions):
        def heads(x, name):
            x = x @ self.kernel(f"{at}/{name}")
            return x.reshape(*x.shape[:2], -1, stack.head_dim)

        query, key, value = heads(y, "query"), heads(source, "key"), heads(source, "value")
        if positions is not None:
            query, key = (self.turned(x, positions, stack) for x in (query, key))
        out = np.zeros_like(query)
        for head in range(stack.heads):
            shared = head * stack.key_heads // stack.heads
            scores = query[:, :, head] @ key[:, :, shared].swapaxes(1, 2)
            scores = scores / np.sqrt(stack.query_scalar)
            scores = stack.attention_cap * np.tanh(scores / stack.attention_cap)
            weights = np.where(seen, np.exp(scores), 0.0)
            weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
            out[:, :, head] = weights @ value[:, :, shared]
        return out.reshape(*y.shape[:2], -1) @ self.kernel(f"{at}/out")

    def turned(self, x, positions, stack):
        """Each pair (i, i + half) as a complex number, turned by its angle."""
        half = stack.head_dim // 2
        angle = positions[:, None] / stack.rope_base ** (np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[None, :, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)


def test_one_layer_of_each_stack():
    tuned = tiny_model(config=CONFIG)
    assert isinstance(tuned.model, T5Gemma)
    inputs, targets = padded_tokens((4, 7), 32, seed=1), padded_tokens((4, 5), 32, seed=2)
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    }
    wanted = Reference(flatten(tuned.params))(inputs, targets)
    actual = np.asarray(logits(tuned.model, tuned.params, batch))
    real, atol = targets > 0, rounding.forward(CONFIG, 7, 5) * np.abs(wanted).max()
    np.testing.assert_allclose(actual[real], wanted[real], rtol=0, atol=atol)
