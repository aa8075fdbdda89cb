"""A task whose targets begin with a sentinel, for backbones that only know span corruption.

Lester et al., 2021 (arXiv 2104.08691), section 2.2: "span corruption + sentinel" puts
`<extra_id_0>` before every target, as it stands before every target of pre-training.
"""

from typing import Any

from prompt_tuning.data import tasks
from prompt_tuning.data.catalogue.text_formats import Example
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.errors import UserError

SENTINEL = "<extra_id_0>"


def register(name: str) -> str:
    """Registers `{name}_sentinel`, of the same source and metrics; replaces one of that name.

    Inputs stay. Label words begin with the sentinel too; post-processing takes it off predictions.

    Args:
      name: of a registered task; its vocabulary has T5's sentinels.

    Returns:
      The name of the new task.

    Raises:
      UserError: if `name` is no task that tokenises with SeqIO.
    """
    if name not in seqio.TaskRegistry.names():
        raise UserError(f"{name}: no such task to put a sentinel before the targets of")
    task = seqio.TaskRegistry.get(name)
    preprocessors = list(task.preprocessors)
    if seqio.preprocessors.tokenize not in preprocessors:
        raise UserError(f"{name}: is not tokenised by SeqIO, so its targets get no sentinel")
    preprocessors.insert(preprocessors.index(seqio.preprocessors.tokenize) + 1, _before_targets)

    def postprocess(text: str, **options: Any) -> Any:
        return task.postprocess_fn(text.strip().removeprefix(SENTINEL).lstrip(), **options)

    new = f"{name}_sentinel"
    tasks.LABELS[new] = tuple(f"{SENTINEL} {label}" for label in tasks.labels_of(name))
    tasks.HIDDEN_SPLITS[new] = tasks.HIDDEN_SPLITS.get(name, ())
    seqio.TaskRegistry.remove(new)
    seqio.TaskRegistry.add(
        new,
        source=task.source,
        preprocessors=preprocessors,
        postprocess_fn=postprocess,
        metric_fns=task.metric_fns,
        output_features=task.output_features,
        **tasks.shuffling(task.source),
    )
    return new


def _before_targets(
    dataset: tf.data.Dataset, output_features: dict[str, seqio.Feature]
) -> tf.data.Dataset:
    sentinel = output_features["targets"].vocabulary.vocab_size - 1

    @seqio.map_over_dataset
    def add(example: Example) -> Example:
        return example | {"targets": tf.concat([[sentinel], example["targets"]], axis=0)}

    return add(dataset)
