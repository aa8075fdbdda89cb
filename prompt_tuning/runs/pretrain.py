"""Pre-training of a backbone: model tuning of all leaves on the unsupervised mixture."""

from collections.abc import Callable

import optax
from etils import epath

from prompt_tuning import sharding
from prompt_tuning.methods.full import ModelTuning
from prompt_tuning.model import summary
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.pretraining.mixture import Mixture
from prompt_tuning.runs import checks
from prompt_tuning.runtime.lock import only_run
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import T5Config
from prompt_tuning.training.loop import fit
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor


def pretrain(
    *,
    model_dir: str,
    config: T5Config,
    layout: Layout,
    mixture: Mixture,
    total_steps: int,
    learning_rate: optax.ScalarOrSchedule,
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] = adafactor,
    loss: Loss = Loss(normalizing_factor="NUM_REAL_TARGET_TOKENS"),
    initial_checkpoint: str = "",
    checkpoint_period: int = 100,
    keep: int = 1,
    log_period: int = 50,
    seed: int = 0,
    on_start: Callable[[epath.Path], str | None] = lambda folder: None,
    dry_run: bool = False,
) -> TunedModel | None:
    """Trains every leaf on `mixture`; a run that was stopped goes on where it was.

    Args:
      model_dir: the run's folder.
      config: the backbone's shape.
      mixture: its batches.
      total_steps, learning_rate, optimizer, loss, checkpoint_period, keep, log_period: see
        `trainer.fit`.
      initial_checkpoint: weights to start from; "" starts at random.
      layout: how arrays lie on the devices.
      seed: of initialisation and dropout.
      on_start: called with the folder before anything is written.
      dry_run: print parameters and shardings, allocate and write nothing.
    """
    method = ModelTuning()
    if dry_run:
        print(summary.plan(config, method, layout))
        return None
    folder = checks.output_folder("MODEL_DIR", model_dir)
    sharding.check_batch_size(mixture.batch_size, layout)
    checks.positive({"TRAIN_STEPS": total_steps})
    mixture(0)  # reads corpus and vocabulary before anything is written
    tuned = initialize(
        config, method, layout=layout, seed=seed, checkpoint=initial_checkpoint or None
    )
    with only_run(folder):
        on_start(folder)
        return fit(
            tuned,
            model_dir=folder,
            batches=mixture.batches,
            total_steps=total_steps,
            learning_rate=learning_rate,
            optimizer=optimizer,
            loss=loss,
            checkpoint_period=checkpoint_period,
            keep=keep,
            log_period=log_period,
            seed=seed,
        )
