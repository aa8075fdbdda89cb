"""Loading of the model that a command works on."""

import dataclasses

from prompt_tuning.checkpoint import card
from prompt_tuning.errors import true_or_false
from prompt_tuning.families import check_target_prefix
from prompt_tuning.methods.base import Method
from prompt_tuning.methods.prompt_file import prompt_start
from prompt_tuning.model.tuned import TunedModel, initialize, with_trained
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.vocabulary import check_size


def load(
    config: Config,
    method: Method,
    data: Data,
    layout: Layout,
    *,
    checkpoint: str,
    seed: int,
    trained_file: str = "",
    allow_other_backbone: bool = False,
    allow_other_settings: bool = False,
) -> TunedModel:
    """Loads a backbone and the leaves of a method.

    Args:
      config: Configuration of the backbone.
      method: Tuning method.
      data: Task or mixture, whose words a method may start from.
      layout: Layout of the arrays on the devices.
      checkpoint: Path of the backbone's weights.
      seed: Seed of the initialisation.
      trained_file: Trained leaves of a run, read in place of the initialised ones; "" for none.
      allow_other_backbone: Whether the card of `trained_file` may name another backbone.
      allow_other_settings: Whether it may name other settings of the method.
    """
    true_or_false("ALLOW_OTHER_BACKBONE", allow_other_backbone)
    start = prompt_start(method)
    path, allowed = (start.path, start.allow_other_backbone) if start else ("", False)
    if path := trained_file or path:
        saved = card.read(path)
        if saved and not (allow_other_backbone if trained_file else allowed):
            vocabulary = data.vocabulary_fingerprint
            card.check_model(saved.trained_with, path, vocabulary=vocabulary)
    check_target_prefix(config, data.target_prefix)
    tuned = initialize(
        config,
        method,
        layout=layout,
        seed=seed,
        checkpoint=checkpoint,
        encode=data.encode,
        labels=data.labels,
        tasks=data.tasks,
    )
    check_size(data.vocabulary_size, config.vocab_size)
    if trained_file:
        tuned = with_trained(tuned, trained_file, allow_other_backbone, allow_other_settings)
    # Commands that answer have followed the card (`as_trained`), or were told not to.
    return dataclasses.replace(tuned, trained_with=None)
