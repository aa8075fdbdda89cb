"""How far float32 arithmetic may be from exact: counted from the shapes, not read off a run.

A sum of n numbers, added in any order, is off by at most `rounding(n)` of their sizes, but for a
chance of 3e-8 (Higham and Mary, 2019, theorem 2.4: lambda sqrt(n) u, here with lambda = 6 and
u = 2^-24). Sums that follow each other count as one of all their numbers, since norms between
layers keep a layer's error as small, relative to its values, as it was before.
"""

import math

from prompt_tuning.transformer.config import Config, Stack

UNIT = 2.0**-24  # largest relative error of one float32 operation


def rounding(terms: float) -> float:
    """Bound on the error of `terms` successive additions, relative to the largest value."""
    return 6 * math.sqrt(terms) * UNIT


def forward(config: Config, inputs: int, targets: int) -> float:
    """Bound for states, logits and the loss, relative to the largest of each.

    Counts the numbers added on the longest way through the model: norms, products, softmaxes.

    Args:
      config: shape of the model.
      inputs: encoder positions, those of a prompt too.
      targets: decoder positions.
    """
    return rounding(_terms(config, inputs, targets))


def backward(config: Config, inputs: int, targets: int) -> float:
    """The same for gradients: the way back has two products for each one on the way there."""
    return rounding(3 * _terms(config, inputs, targets))


def _terms(config: Config, inputs: int, targets: int) -> int:
    encoder, decoder = config.stack("encoder"), config.stack("decoder")
    norms = 2 if config.architecture.post_norms else 1  # of a block

    def attention(stack: Stack, keys: int) -> int:
        width = (norms + 1) * stack.width
        return width + stack.head_dim + 2 * keys + stack.heads * stack.head_dim

    def mlp(stack: Stack) -> int:
        return (norms + 1) * stack.width + stack.hidden

    first = encoder.layers * (attention(encoder, inputs) + mlp(encoder))
    second = decoder.layers * (
        attention(decoder, targets) + attention(decoder, inputs) + mlp(decoder)
    )
    return first + second + encoder.width + 2 * decoder.width + config.vocab_size
