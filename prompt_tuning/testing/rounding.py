"""How far float32 arithmetic may be from exact: counted from the shapes, not read off a run.

A sum of n numbers, added in any order, is off by at most `rounding(n)` of their sizes, but for a
chance of 3e-8 (Higham and Mary, 2019, theorem 2.4: lambda sqrt(n) u, here with lambda = 6 and
u = 2^-24). Sums that follow each other count as one of all their numbers, since norms between
layers keep a layer's error as small, relative to its values, as it was before.
"""

import math

from prompt_tuning.t5.config import T5Config

UNIT = 2.0**-24  # largest relative error of one float32 operation


def rounding(terms: float) -> float:
    """Bound on the error of `terms` successive additions, relative to the largest value."""
    return 6 * math.sqrt(terms) * UNIT


def forward(config: T5Config, inputs: int, targets: int) -> float:
    """Bound for states, logits and the loss, relative to the largest of each.

    Counts the numbers added on the longest way through the model: norms, products, softmaxes.

    Args:
      config: shape of the model.
      inputs: encoder positions, those of a prompt too.
      targets: decoder positions.
    """
    return rounding(_terms(config, inputs, targets))


def backward(config: T5Config, inputs: int, targets: int) -> float:
    """The same for gradients: the way back has two products for each one on the way there."""
    return rounding(3 * _terms(config, inputs, targets))


def _terms(config: T5Config, inputs: int, targets: int) -> int:
    d, joined = config.d_model, config.num_heads * config.head_dim

    def attention(keys: int) -> int:
        return 2 * d + config.head_dim + 2 * keys + joined

    mlp = 2 * d + config.d_ff
    encoder = config.num_encoder_layers * (attention(inputs) + mlp)
    decoder = config.num_decoder_layers * (attention(targets) + attention(inputs) + mlp)
    return encoder + decoder + 3 * d + config.vocab_size
