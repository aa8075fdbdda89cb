"""This package's T5 as the network of a T5X model, for the methods that T5X's own cannot take.

T5X's trainer, partitioner and decoding run it. Its parameters have the paths of `t5x.examples.t5`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from etils import epath
from t5x import models

from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint import trained as trained_file
from prompt_tuning.checkpoint.card import Card
from prompt_tuning.errors import UserError
from prompt_tuning.in_t5x import checkpoints
from prompt_tuning.in_t5x.model import Start
from prompt_tuning.in_t5x.optimizer import OnlyTrained, Optimizer
from prompt_tuning.in_t5x.variables import in_t5x_form
from prompt_tuning.methods import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import T5
from prompt_tuning.training import optim
from prompt_tuning.transformer.network import Cache, Encoded
from prompt_tuning.transformer.stacked_leaves import unstack


def tuned(
    model: models.EncoderDecoderModel,
    config: T5Config,
    method: Method,
    start: Start = lambda method: {},
    optimizer: Optimizer = optim.adafactor,
) -> models.EncoderDecoderModel:
    """Gives a finished T5X model our network with any method, and trains the method's leaves alone.

    Args:
      model: Model of T5X; it is changed and returned.
      config: Configuration of the backbone.
      method: Tuning method.
      start: Initial values of the method's leaves, for those that do not start at random.
      optimizer: Function from a learning rate to an optax optimizer; T5X's schedule sets the rate.

    Raises:
      UserError: If the method adds positions to the decoder, of which T5X's decoding has none.
      ValueError: If the method does not fit the backbone.
    """
    if method.decoder_positions:
        raise UserError(
            f"METHOD = {method}: T5X's decoding has no room for a prompt in the decoder"
        )
    split = ParamSplit.of(config, method)
    model.module = _Network(config, method, start)
    model.optimizer_def = OnlyTrained(optimizer, split.trained.__contains__)
    return model


def backbone_alone(config: T5Config, method: Method) -> Callable[..., Any]:
    """`checkpoints.backbone_alone` for a backbone with this method."""
    is_added = ParamSplit.of(config, method).added.__contains__
    return functools.partial(checkpoints.backbone_alone, is_added=is_added)


class SaveTrained(checkpoints.SavePrompt):
    """Writes `trained/trained_STEP.safetensors` with its card, for `TRAINED_FILE`."""

    subfolder = "trained"

    def __init__(self, config: T5Config, method: Method, **arguments: Any) -> None:
        """Takes the backbone's configuration, and the arguments of `SavePrompt`."""
        super().__init__(method=method, **arguments)
        self.paths = ParamSplit.of(config, method).trained

    def write(self, folder: epath.Path, leaves: Mapping[str, np.ndarray], card: Card) -> None:
        path = folder / f"trained_{card.steps}.safetensors"
        cards.save(path, card, unstack(leaves))
        trained_file.save(path, leaves)


class _Network(nn.Module):
    """Has T5X's calls and our network's parameters.

    Attributes:
      config: Configuration of the backbone.
      method: Tuning method.
      start: Initial values of the method's leaves.
    """

    config: T5Config
    method: Method
    start: Start

    def setup(self):
        self.t5 = T5(self.config, self.method)
        nn.share_scope(self, self.t5)  # so that its paths do not begin with `t5`

    @nn.nowrap
    def init(self, rngs, *args, **kwargs):
        tokens = [array.astype(jnp.int32) for array in args]  # T5X's may be floats
        variables = super().init(rngs, *tokens, **kwargs)
        return in_t5x_form(variables, self.start(self.method))

    def __call__(self, *tokens_segments_positions, decode=False, **arguments):
        if decode:  # T5X asks for an empty cache
            return self._empty_cache(**arguments)
        if arguments.get("encoder_segment_ids") is not None and self.method.positions != 0:
            raise UserError(
                "packed examples have no room for the positions that METHOD adds: set "
                "utils.DatasetConfig.pack = False (also of train/ and train_eval/)"
            )
        return self.t5(*tokens_segments_positions, **arguments)

    def _empty_cache(self, encoder_input_tokens, decoder_input_tokens, **_):
        encoded = self.t5.encode(encoder_input_tokens)
        self._put(self.t5.init_cache(encoded, decoder_input_tokens.shape[1]))
        return jnp.zeros((*decoder_input_tokens.shape, self.config.vocab_size))

    def encode(self, encoder_input_tokens, enable_dropout=True):
        return self.t5.encode(encoder_input_tokens, enable_dropout=enable_dropout).states

    def decode(self, encoded, _, decoder_input_tokens, *__, decode, **___):
        """Takes one token per row, [B, 1], to logits [B, 1, V]; cross keys are computed anew.

        T5X keeps the tokens of the input, without the method's positions. Where these are, the
        states themselves tell: they are zero at padding, and nowhere else.
        """
        assert decode
        encoded = Encoded(encoded, (encoded != 0).any(-1).astype(jnp.int32))
        values: list = [self.get_variable("cache", name) for name in self._names()]
        keys_values = tuple(zip(values[1::2], values[2::2], strict=True))
        cache = Cache(encoded, values[0], keys_values, None)
        logits, cache = self.t5.decode_step(decoder_input_tokens[:, 0], cache)
        self._put(cache)
        return logits[:, None]

    @nn.nowrap
    def _names(self):
        """Names in T5X's cache; it moves all entries with the beams but an index of this name."""
        layers = range(self.config.num_decoder_layers)
        return ["cache_index", *(f"layers_{i}_{name}" for i in layers for name in ("key", "value"))]

    @nn.nowrap
    def _put(self, cache):
        arrays = [cache.index, *(array for pair in cache.keys_values for array in pair)]
        for name, array in zip(self._names(), arrays, strict=True):
            self.put_variable("cache", name, array)
