"""The files that a training run leaves: trained leaves, exported prompts, and their cards."""

from etils import epath

from prompt_tuning import __version__
from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint import prompts, trained_data
from prompt_tuning.checkpoint import trained as trained_file
from prompt_tuning.checkpoint.card import Card
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.evaluation.validation import Metrics
from prompt_tuning.methods.base import Method
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.runtime import distributed
from prompt_tuning.training.log import rate_at
from prompt_tuning.training.loop import Fit
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import Params, flatten
from prompt_tuning.transformer.stacked_leaves import unstack


def card_at(
    step: int,
    metrics: Metrics,
    *,
    identity: Identity,
    config: Config,
    method: Method,
    data: Data,
    fit: Fit,
    settings: str,
) -> Card:
    """Describes the trained leaves of a step.

    Args:
      step: Number of steps that the leaves were trained for.
      metrics: Validation metrics at that step.
      identity: Identity of the backbone.
      config: Configuration of the backbone.
      method: Tuning method, with its settings for the task.
      data: Task or mixture.
      fit: Settings of training.
      settings: The run's gin configuration; "" without gin.
    """
    return Card(
        backbone=identity.path,
        fingerprint=identity.fingerprint,
        d_model=config.stack("encoder").width,
        task=data.task,
        method=type(method).__name__,
        length=0,
        placement=method.said("placement"),
        initialisation=method.said("initializer"),
        optimizer=getattr(fit.optimizer, "__name__", repr(fit.optimizer)),
        learning_rate=rate_at(fit.learning_rate, max(step, 1)),
        steps=step,
        metric=metrics,
        version=__version__,
        config=settings,
        trained_with=trained_data.of_training(data, method.settings, config.of_model),
    )


def save_trained(
    folder: epath.Path, which: str, method: Method, trained: Params, card: Card
) -> None:
    """Writes trained leaves, and what the method exports separately (a prompt), each with a card.

    Args:
      folder: Folder of the run.
      which: "best" or "last", part of the files' names.
      method: Tuning method.
      trained: Tree of trained leaves.
      card: Card of all, without length and checksum.
    """
    leaves = {path: distributed.to_host(leaf) for path, leaf in flatten(trained).items()}
    cards.save(folder / f"trained_{which}.safetensors", card, unstack(leaves))
    trained_file.save(folder / f"trained_{which}.safetensors", leaves)
    for name, array in method.exports(leaves).items():
        cards.save(folder / f"{name}_{which}.npy", card, array)
        for suffix in (".npy", ".safetensors"):
            prompts.save(folder / f"{name}_{which}{suffix}", array)
