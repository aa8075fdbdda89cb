"""A task whose targets begin with a sentinel, for backbones that only know span corruption.

Lester et al., 2021 (arXiv 2104.08691), section 2.2: "span corruption + sentinel" puts
`<extra_id_0>` before every target, as pre-training does.
"""

from prompt_tuning.data import tasks
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.tasks import TfExample
from prompt_tuning.errors import UserError
from prompt_tuning.transformer.vocabulary import SENTINEL


def register(name: str) -> str:
    """Registers `{name}_sentinel`, with the source and metrics of `name`.

    Inputs are unchanged. Label words begin with the sentinel too; evaluation sets have plain words.

    Args:
      name: A registered task, whose vocabulary has T5's sentinels.

    Returns:
      The name of the new task.

    Raises:
      UserError: If `name` is not a registered task that SeqIO tokenises.
    """
    if name in seqio.MixtureRegistry.names():
        raise UserError(
            f"SENTINEL_TARGETS = True: {name} is a mixture, and targets of a single task get "
            "sentinels; set one task"
        )
    if name not in seqio.TaskRegistry.names():
        raise UserError(f"{name}: no such task to put a sentinel before the targets of")
    task = seqio.TaskRegistry.get(name)
    if not task.output_features["targets"].vocabulary.extra_ids:
        raise UserError(f"{name}: its vocabulary has no sentinels, so its targets get none")
    preprocessors = list(task.preprocessors)
    if seqio.preprocessors.tokenize not in preprocessors:
        raise UserError(f"{name}: is not tokenised by SeqIO, so its targets get no sentinel")
    preprocessors.insert(preprocessors.index(seqio.preprocessors.tokenize) + 1, _before_targets)
    new_name = f"{name}_sentinel"
    tasks.add(
        new_name,
        source=task.source,
        preprocessors=preprocessors,
        postprocess_fn=task.postprocessor,
        metric_fns=task.metric_fns,
        output_features=task.output_features,
        labels=[f"{SENTINEL} {label}" for label in tasks.labels_of(task)],
        hidden_splits=tasks.hidden_splits(task),
        target_prefix=SENTINEL,
        text_fields=tasks.text_fields(task),
    )
    return new_name


def _before_targets(
    dataset: tf.data.Dataset, output_features: dict[str, seqio.Feature]
) -> tf.data.Dataset:
    sentinel = output_features["targets"].vocabulary.vocab_size - 1

    @seqio.map_over_dataset
    def add(example: TfExample) -> TfExample:
        return example | {"targets": tf.concat([[sentinel], example["targets"]], axis=0)}

    return add(dataset)
