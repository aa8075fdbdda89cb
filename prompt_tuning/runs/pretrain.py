"""Pre-training of a backbone: trains all of its leaves on the mixture."""

from collections.abc import Callable

from etils import epath

from prompt_tuning import sharding
from prompt_tuning.checkpoint import fingerprint
from prompt_tuning.methods.full import ModelTuning
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.pretraining import start
from prompt_tuning.pretraining.mixture import Mixture
from prompt_tuning.runs import checks
from prompt_tuning.runtime.lock import only_run
from prompt_tuning.sharding import Layout
from prompt_tuning.training.loop import Fit
from prompt_tuning.transformer.config import Config


def pretrain(
    *,
    model_dir: str,
    config: Config,
    layout: Layout,
    mixture: Mixture,
    fit: Fit,
    initial_checkpoint: str = "",
    seed: int = 0,
    on_start: Callable[[epath.Path], object] = lambda folder: None,
) -> TunedModel:
    """Trains every leaf on `mixture`; an interrupted run resumes.

    Args:
      model_dir: Folder of the run.
      config: Configuration of the backbone.
      layout: Layout of the arrays on the devices.
      mixture: Batches of the pre-training tasks.
      fit: Settings of training.
      initial_checkpoint: Path of the weights to start from; "" for random weights with the
        teacher's vectors in the token embedding and the output layer.
      seed: Seed of the initialisation.
      on_start: Function called with the folder before anything is written.

    Returns:
      The trained backbone.
    """
    folder = checks.output_folder("MODEL_DIR", model_dir)
    sharding.check_batch_size(mixture.batch_size, layout)
    mixture(0)  # reads corpus, table and vocabulary before anything is written
    tuned = initialize(
        config, ModelTuning(), layout=layout, seed=seed, checkpoint=initial_checkpoint or None
    )
    if not initial_checkpoint:
        tuned = start.from_teacher(tuned, mixture.teacher)
    with only_run(folder):
        identity = fingerprint.identity(initial_checkpoint, tuned.backbone, tuned.sums)
        settings = {"RANDOM_SEED (initialisation)": seed, **mixture.settings}
        fit.resumes_from(tuned, folder, identity, settings)
        on_start(folder)
        return fit(
            tuned,
            model_dir=folder,
            batches=mixture.batches,
            identity=identity,
            settings=settings,
        )
