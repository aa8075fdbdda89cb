"""Every method's formula against a second implementation: NumPy, float64, from the papers.

All leaves are random, those that start at zero too.
"""

import numpy as np
import pytest
from numpy_t5 import CONFIG, NumpyT5, gelu, random_batch, random_leaves, softmax_attention

from prompt_tuning.methods import (
    IA3,
    Adapter,
    BitFit,
    Combined,
    DeepPrompt,
    LoRA,
    ModelTuning,
    MultitaskPrompt,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Warp,
)
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5 import T5
from prompt_tuning.testing import rounding
from prompt_tuning.testing.methods import logits
from prompt_tuning.transformer.paths import unflatten

P, LAYERS = 4, CONFIG.num_encoder_layers
LENGTHS = P + 11, 3 + 6  # positions of both stacks, those of prompts too
BATCH = random_batch() | {"tasks": np.array([1, 0, 2], np.int32)}


class Prompts(NumpyT5):
    """[prompt; X] in front of both stacks (Lester et al., 2021)."""

    def prompt(self, stack, batch):
        return self.w[f"{stack}/prompt/prompt/prompt"]


class EncoderPrompt(NumpyT5):
    def prompt(self, stack, batch):
        if stack == "decoder":
            return super().prompt(stack, batch)
        return self.encoder_prompt(batch)


class Mlp(EncoderPrompt):
    """P-tuning: prompt = W3 relu(W2 relu(W1 e))."""

    def encoder_prompt(self, batch):
        x = self.w["encoder/prompt_encoder/embedding"]
        return self.dense(2, relu(self.dense(1, relu(self.dense(0, x)))))

    def dense(self, i, x):
        name = f"encoder/prompt_encoder/layer_{i}"
        return x @ self.w[f"{name}/kernel"] + self.w[f"{name}/bias"]


class Lstm(Mlp):
    """P-tuning: prompt = MLP([forward LSTM; backward LSTM](e)) (Liu et al., 2021)."""

    def encoder_prompt(self, batch):
        x = self.w["encoder/prompt_encoder/embedding"]
        both = [self.lstm("forward", x), self.lstm("backward", x[::-1])[::-1]]
        return self.dense(1, relu(self.dense(0, np.concatenate(both, axis=1))))

    def lstm(self, direction, inputs):
        name = f"encoder/prompt_encoder/{direction}"
        hidden = cell = np.zeros(self.w[f"{name}/hi/bias"].shape)
        outputs = []
        for x in inputs:
            i, f, g, o = (
                x @ self.w[f"{name}/i{gate}/kernel"]
                + hidden @ self.w[f"{name}/h{gate}/kernel"]
                + self.w[f"{name}/h{gate}/bias"]
                for gate in "ifgo"
            )
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(cell)
            outputs.append(hidden)
        return np.stack(outputs)


class Multitask(EncoderPrompt):
    """The prompt of task k is P* o (u_k v_k^T) (Wang et al., 2023)."""

    def encoder_prompt(self, batch):
        shared, rows, columns = (
            self.w[f"encoder/prompt/{name}"] for name in ("shared", "rows", "columns")
        )
        return np.stack([shared * (rows[k] @ columns[k]) for k in batch["tasks"]])


class DeepPrompts(EncoderPrompt):
    """[prompt_i; H_i] is the input of layer i (P-tuning v2, Liu et al., 2022)."""

    def encoder_prompt(self, batch):
        return self.w["encoder/prompt_0/prompt"]

    def layer_input(self, layer, x):
        own = self.w[f"encoder/prompt_{layer[-1]}/prompt"]
        return np.concatenate([np.broadcast_to(own, (len(x), *own.shape)), x[:, P:]], axis=1)


class Prefix(NumpyT5):
    """softmax(q [P_K; K]^T) [P_V; V] in every attention (Li and Liang, 2021): the prefix at bias 0,
    seen by every query.
    """

    def attend(self, block, query, key, value, bias, mask):
        own_keys, own_values = self.prefix(block, len(query))
        front = ((0, 0), (0, 0), (P, 0))
        key = np.concatenate([own_keys, key], axis=2)
        value = np.concatenate([own_values, value], axis=2)
        mask = np.pad(mask, front, constant_values=True)
        return softmax_attention(query, key, value, np.pad(bias, front), mask)

    def prefix(self, block, batch):
        """Keys and values, each [B, H, P, d]."""
        stack, layer, kind = block.split("/")
        pair = self.made(f"{stack}/prefix_{kind}")[int(layer[-1])].swapaxes(1, 2)
        return np.broadcast_to(pair[:, None], (2, batch, *pair.shape[1:]))

    def made(self, name):
        """[layers, 2, P, H, d]."""
        return self.w[f"{name}/keys_values"]


class PrefixOfNetwork(Prefix):
    """The prefix is W' tanh(W x), a row per position; layers, keys before values, heads."""

    def made(self, name):
        hidden = np.tanh(
            self.w[f"{name}/inputs"] @ self.w[f"{name}/hidden/kernel"]
            + self.w[f"{name}/hidden/bias"]
        )
        rows = hidden @ self.w[f"{name}/out/kernel"] + self.w[f"{name}/out/bias"]
        size = CONFIG.num_heads * CONFIG.head_dim
        made = np.empty((LAYERS, 2, P, CONFIG.num_heads, CONFIG.head_dim))
        for layer in range(LAYERS):
            for kind in range(2):
                start = (2 * layer + kind) * size
                made[layer, kind] = rows[:, start : start + size].reshape(made.shape[2:])
        return made


class GatedPrefix(Prefix):
    """softmax(q K^T) V + tanh(g) softmax(q P_K^T) P_V (Zhang et al., 2023)."""

    def attend(self, block, query, key, value, bias, mask):
        own_keys, own_values = self.prefix(block, len(query))
        stack, layer, kind = block.split("/")
        gate = self.w[f"{stack}/prefix_{kind}/gates"][int(layer[-1])]
        scores = np.exp(query @ own_keys.swapaxes(-1, -2))
        own = scores / scores.sum(-1, keepdims=True) @ own_values
        plain = softmax_attention(query, key, value, bias, mask)
        return plain + np.tanh(gate)[:, None, None] * own


class LowRank(NumpyT5):
    """x (W + (alpha / r) A B) at query, value and wo (Hu et al., 2021, section 4.1)."""

    def linear(self, block, projection, x):
        if projection not in ("query", "value", "wo"):
            return super().linear(block, projection, x)
        a, b = (self.w[f"{block}/lora_{projection}/{name}"] for name in "ab")
        return x @ (self.w[f"{block}/{projection}/kernel"] + 3.0 / 2 * a @ b)


class Houlsby(NumpyT5):
    """y + gelu(y W + b) W' + b' after every block (Houlsby et al., 2019, section 2.1)."""

    def sublayer(self, block, y):
        layer, kind = block.rsplit("/", 1)
        name = f"{layer}/adapter_{kind}"
        hidden = gelu(y @ self.w[f"{name}/down"] + self.w[f"{name}/down_bias"])
        return y + hidden @ self.w[f"{name}/up"] + self.w[f"{name}/up_bias"]


class Pfeiffer(Houlsby):
    """The same after the feed-forward block alone, and here in the second layers alone."""

    def sublayer(self, block, y):
        return super().sublayer(block, y) if block.endswith("layers_1/mlp") else y


class Scales(NumpyT5):
    """l_k o K, l_v o V, and (l_ff o gated hidden units) W_o (Liu et al., 2022, section 3.3)."""

    def linear(self, block, projection, x):
        scale = self.w.get(f"{block}/ia3_{projection}/scale", 1.0)
        if projection == "wo":
            return super().linear(block, projection, scale * x)
        return scale * super().linear(block, projection, x)


class Biases(NumpyT5):
    def linear(self, block, projection, x):
        y = super().linear(block, projection, x)
        return y if projection == "key" else y + self.w[f"{block}/bias_{projection}/bias"]


class Verbalizers(EncoderPrompt):
    """The output row of token 5 is w_5 + v_0, that of token 9 w_9 + v_1."""

    def encoder_prompt(self, batch):
        return self.w["encoder/prompt/prompt/prompt"]

    def logits_of(self, hidden):
        kernel = self.w["decoder/logits_dense/kernel"].copy()
        kernel[:, [5, 9]] += self.w["decoder/verbalizer/vectors"].T
        return hidden @ kernel


class PrefixAndLowRank(Prefix, LowRank):
    """Both at once: the keys and values of the prefix are not projected."""


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


LORA = LoRA(2, alpha=3.0, projections=("query", "value", "wo"))
CASES = {
    "plain": (ModelTuning(), NumpyT5),
    "prompts": (PromptTuning(P, decoder_length=3), Prompts),
    "p_tuning": (PTuning(P, hidden=5), Mlp),
    "p_tuning_lstm": (PTuning(P, hidden=5, encoder="lstm"), Lstm),
    "multitask_prompt": (MultitaskPrompt(P, ["a", "b", "c"], rank=2), Multitask),
    "deep_prompt": (DeepPrompt(P), DeepPrompts),
    "prefix": (PrefixTuning(P), Prefix),
    "prefix_of_network": (PrefixTuning(P, hidden=5), PrefixOfNetwork),
    "prefix_gated": (PrefixTuning(P, gated=True), GatedPrefix),
    "lora": (LORA, LowRank),
    "houlsby": (Adapter(3), Houlsby),
    "pfeiffer": (Adapter(3, "pfeiffer", layers=[1]), Pfeiffer),
    "ia3": (IA3(), Scales),
    "bitfit": (BitFit(), Biases),
    "warp": (Warp(P, label_ids=[5, 9]), Verbalizers),
    "prefix_and_lora": (Combined([PrefixTuning(P), LORA]), PrefixAndLowRank),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name):
    method, reference = CASES[name]
    leaves = random_leaves(method)
    expected = reference(leaves).logits(BATCH)
    assert np.abs(expected).max() > 1
    ours = logits(T5(CONFIG, method), unflatten(leaves), BATCH)
    atol = rounding.forward(CONFIG, *LENGTHS) * np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)
    # Each of the method's leaves counts for far more than what is tolerated.
    for path in ParamSplit.of(CONFIG, method).added:
        moved = reference(leaves | {path: -leaves[path]}).logits(BATCH)
        change = np.abs(moved - expected).max()
        assert change > 100 * atol, path
