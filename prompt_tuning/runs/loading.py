"""The model that a command works on: backbone, method, and perhaps what a run trained."""

from prompt_tuning.methods.base import Method
from prompt_tuning.model.tuned import TunedModel, initialize, with_trained
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import T5Config


def load(
    config: T5Config,
    method: Method,
    data: Data,
    layout: Layout,
    *,
    checkpoint: str,
    seed: int,
    trained_file: str = "",
    allow_other_backbone: bool = False,
) -> TunedModel:
    """The backbone of `checkpoint` with the method's leaves, as the method initialises them for the
    task, or all trained leaves from `trained_file` (whose card must name the backbone, unless
    `allow_other_backbone`).
    """
    tuned = initialize(
        config,
        method.for_task(data.encode, data.labels, data.tasks),
        layout=layout,
        seed=seed,
        checkpoint=checkpoint,
        encode=data.encode,
        labels=data.labels,
    )
    return with_trained(tuned, trained_file, allow_other_backbone) if trained_file else tuned
