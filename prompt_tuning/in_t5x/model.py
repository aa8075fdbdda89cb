"""T5X's models with a prompt in the encoder's input; everything else in them stays T5X's own."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from t5x import models

from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint import card as cards
from prompt_tuning.errors import UserError
from prompt_tuning.in_t5x.checkpoints import fingerprint_of
from prompt_tuning.in_t5x.optimizer import OnlyTrained, Optimizer
from prompt_tuning.in_t5x.variables import in_t5x_form, longer, real
from prompt_tuning.methods import Method, PromptTuning
from prompt_tuning.methods.base import Backbone
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.methods.prompt_file import with_prompt
from prompt_tuning.training import optim
from prompt_tuning.transformer.paths import EMBEDDING

Start = Callable[[Method], Mapping[str, np.ndarray]]  # initial values, by path


def prompted(
    model: models.EncoderDecoderModel,
    method: PromptTuning = PromptTuning(),
    start: Start = lambda method: {},
    optimizer: Optimizer = optim.adafactor,
    prompt_file: str = "",
    allow_other_backbone: bool = False,
) -> models.EncoderDecoderModel:
    """Puts a prompt into a finished T5X model, and trains it alone.

    Args:
      model: Model whose network is one of `t5x.examples`; it is changed and returned.
      method: Length, placement and initialiser of the prompt.
      start: Initial values of the prompt; without one it is uniform.
      optimizer: Function from a learning rate to an optax optimizer; T5X's schedule sets the rate.
      prompt_file: Saved prompt, or T5X checkpoint with one, that gives length and values; "" for
        those of `method`.
      allow_other_backbone: Whether the card of `prompt_file` may name another backbone.

    Raises:
      UserError: If the method is not prompt tuning of the encoder's input alone, or the prompt was
        trained at another place.
    """
    if not isinstance(method, PromptTuning) or method.decoder_length:
        raise UserError(
            f"METHOD = {method}: T5X's own network takes prompts in the encoder's input alone; "
            "prompt_tuning/in_t5x/method.gin trains the other methods"
        )
    if prompt_file:
        card, placement = cards.read(prompt_file), method.said("placement")
        if card and card.placement and card.placement != placement:
            raise UserError(
                f"PROMPT_PLACEMENT = {placement!r}: {prompt_file} was trained with "
                f"{card.placement!r}; use that"
            )
        tuned = with_prompt(method, prompt_file, allow_other_backbone=allow_other_backbone)
        assert isinstance(tuned, PromptTuning)
        method = tuned
    model.module = prompted_network(model.module, method, start)
    model.optimizer_def = OnlyTrained(optimizer, PROMPT_PATH.__eq__)
    return model


def prompted_network(
    network: nn.Module, method: PromptTuning, start: Start = lambda method: {}
) -> nn.Module:
    """A network of `t5x.examples` with a prompt: of a class derived from its own."""
    kind = type(network)
    made = type(f"Prompted{kind.__name__}", (_Prompted, kind), {"__module__": __name__})
    names = [field.name for field in dataclasses.fields(network) if field.init]
    fields = {name: getattr(network, name) for name in names if name not in ("parent", "name")}
    return made(**fields, method=method, start=start)


class _Prompted(nn.Module):
    """Comes before a `Transformer` of T5X, whose methods it extends."""

    method: PromptTuning = PromptTuning()
    start: Start = lambda method: {}

    def encode(self, encoder_input_tokens, encoder_segment_ids=None, **arguments):
        if encoder_segment_ids is not None:
            raise UserError(
                "packed examples have no room for a prompt: set utils.DatasetConfig.pack = False "
                "(also of train/ and train_eval/)"
            )
        tokens, prompted_input = encoder_input_tokens, None

        def inject(call, positional, keyword, context):
            nonlocal prompted_input
            if context.method_name == "__call__":
                if context.module is self.encoder:  # a module made here is the encoder's child
                    x = self.shared_embedding(tokens.astype(np.int32))
                    prompted_input, _, _ = self.method.embedded(x, real(tokens), None, "encoder")
                elif context.module is self.shared_embedding and prompted_input is not None:
                    return prompted_input
            return call(*positional, **keyword)

        with nn.intercept_methods(inject):
            return super().encode(self._longer(tokens), **arguments)  # type: ignore[misc]

    def decode(self, encoded, encoder_input_tokens, *positional, **arguments):
        tokens = self._longer(encoder_input_tokens)
        return super().decode(encoded, tokens, *positional, **arguments)  # type: ignore[misc]

    def _longer(self, tokens):
        return longer(tokens, self.method.length, self.method.placement)

    @nn.nowrap
    def init(self, *positional, **arguments):
        variables = super().init(*positional, **arguments)
        return in_t5x_form(variables, self.start(self.method))


class FromBackbone:
    """Computes a method's initial values from a backbone's embeddings, by its initialiser.

    T5X traces the initialisation several times; the values are made once for each method.
    """

    def __init__(
        self, checkpoint: str, vocabulary: Any = None, labels: Sequence[str] = (), seed: int = 0
    ) -> None:
        """Names what to start from.

        Args:
          checkpoint: T5X checkpoint of the backbone.
          vocabulary: SeqIO vocabulary, for initialisers that start from words.
          labels: Label words of the task, for the same initialisers.
          seed: Seed of the initialiser.
        """
        self._checkpoint, self._labels, self._seed = checkpoint, tuple(labels), seed
        self._encode = None if vocabulary is None else vocabulary.encode
        self._made: dict[Method, Mapping[str, np.ndarray]] = {}

    def __call__(self, method: Method) -> Mapping[str, np.ndarray]:
        if method not in self._made:
            with jax.ensure_compile_time_eval():
                table = backbone.load_leaf(self._checkpoint, EMBEDDING)
                about = Backbone(
                    table, self._encode, self._labels, lambda: fingerprint_of(self._checkpoint)
                )
                self._made[method] = method.initial_values(about, self._seed)
        return self._made[method]
