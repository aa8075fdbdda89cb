"""Registers SeqIO tasks that know their label words, and the three demo tasks of the package."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from prompt_tuning import embedded
from prompt_tuning.data import label_words, metrics
from prompt_tuning.data.files import MACROS, Row, TextFiles
from prompt_tuning.data.metrics import accuracy
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import MetricFn
from prompt_tuning.transformer import vocabulary as vocabularies

Provider: TypeAlias = Any  # a seqio.Task or seqio.Mixture
TfExample = dict[str, tf.Tensor]  # an example inside a SeqIO preprocessor, by feature

COLUMNS = "columns"  # feature of an example: JSON of the further columns of its row
DEMO_LABELS = {
    "demo_reviews": ("negative", "positive"),
    "demo_questions": ("abbreviation", "description", "entity", "human", "location", "number"),
    "demo_topics": ("business", "health", "politics", "science", "sport"),
}


class Task(seqio.Task):
    """A SeqIO task with label words, some of whose splits may lack public targets."""

    def __init__(
        self,
        *args: Any,
        labels: Sequence[str],
        hidden_splits: Sequence[str],
        target_prefix: str,
        text_fields: Sequence[str],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.labels = tuple(labels)
        self.hidden_splits = tuple(hidden_splits)
        self.target_prefix = target_prefix
        self.text_fields = tuple(text_fields)


def add(
    name: str,
    *,
    source: seqio.DataSource,
    preprocessors: Sequence[Callable[..., tf.data.Dataset]],
    output_features: Mapping[str, seqio.Feature],
    metric_fns: Sequence[MetricFn] = (),
    postprocess_fn: Callable[..., Any] | None = None,
    labels: Sequence[str] = (),
    hidden_splits: Sequence[str] = (),
    target_prefix: str = "",
    text_fields: Sequence[str] = (),
) -> Task:
    """Registers a SeqIO task, replacing any of the same name.

    Args:
      name: Name of the task.
      source, preprocessors, output_features, metric_fns, postprocess_fn: See `seqio.Task`.
      labels: Label words in the order of the labels' numbers; empty for text to text.
      hidden_splits: Splits without public targets, which can be predicted on but not scored.
      target_prefix: Text that a preprocessor puts before the tokens of every target.
      text_fields: Fields of a user's files that the text is joined from.
    """
    labels = label_words.checked(labels, f"{name}, label words")
    # SeqIO's shuffle buffer would mix the epochs of a small task.
    shuffling = {"shuffle_buffer_size": None} if source.performs_internal_shuffling else {}
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=list(preprocessors),
        output_features=output_features,
        metric_fns=list(metric_fns),
        postprocess_fn=postprocess_fn,
        task_cls=Task,
        labels=labels,
        hidden_splits=hidden_splits,
        target_prefix=target_prefix,
        text_fields=text_fields,
        **shuffling,
    )


def add_mixture(name: str, rates: Mapping[str, Any]) -> seqio.Mixture:
    """Registers a SeqIO mixture, replacing any of the same name.

    Args:
      name: Name of the mixture.
      rates: Mixing rate of each task: a number, or a function of the task.
    """
    seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, list(rates.items()))


def parts(provider: str | Provider) -> list[seqio.Task]:
    """The tasks of a mixture in the order in which it lists them, or the task itself.

    Args:
      provider: A task or mixture, or the name of a registered one.
    """
    if isinstance(provider, str):
        provider = seqio.get_mixture_or_task(provider)
    if isinstance(provider, seqio.Task):
        return [provider]
    place = {part: i for i, part in enumerate(provider.rate_per_task_name)}
    return sorted(provider.tasks, key=lambda task: place.get(task.name, len(place)))


def labels_of(provider: str | Provider) -> tuple[str, ...]:
    """Label words of a task, or of all tasks of a mixture; the argument is that of `parts`.

    Empty for text to text and for tasks registered with plain SeqIO.
    """
    words = (word for task in parts(provider) if isinstance(task, Task) for word in task.labels)
    return tuple(dict.fromkeys(words))


def words_of(provider: str | Provider) -> tuple[str, ...]:
    """`labels_of` as the texts of rows have them, without the prefix of targets."""
    words = (
        label_words.without_prefix(target_prefix(task), label)
        for task in parts(provider)
        for label in labels_of(task)
    )
    return tuple(dict.fromkeys(words))


def hidden_splits(task: seqio.Task) -> tuple[str, ...]:
    """Splits of a task that can be predicted on but not scored."""
    return task.hidden_splits if isinstance(task, Task) else ()


def text_fields(task: seqio.Task) -> tuple[str, ...]:
    """Fields of a user's files that a task's text is joined from; empty for other tasks."""
    return task.text_fields if isinstance(task, Task) else ()


def target_prefix(task: seqio.Task) -> str:
    """Text that a preprocessor puts before the tokens of every target; "" for none."""
    return task.target_prefix if isinstance(task, Task) else ""


class RowSource(MemorySource):
    """A source of `Row`s in memory."""

    def __init__(self, rows: Mapping[str, Callable[[], list[Row]]]) -> None:
        super().__init__(rows)
        self._rows = dict(rows)

    def rows(self, split: str) -> list[Row]:
        return self._rows[split]()

    def columns(self, split: str) -> dict[str, tf.Tensor]:
        rows = self.rows(split)
        columns = {
            "inputs": tf.constant([row.inputs for row in rows], tf.string),
            "targets": tf.constant([row.targets for row in rows], tf.string),
        }
        if any(row.columns for row in rows):
            texts = [json.dumps(row.columns) for row in rows]
            columns[COLUMNS] = tf.constant(texts, tf.string)
        return columns


def vocabulary(path: str | Path, extra_ids: int | None = None) -> seqio.SentencePieceVocabulary:
    """Loads a SentencePiece model.

    Args:
      path: The model, or what `transformer.vocabulary.file_of` takes.
      extra_ids: Number of sentinels after its pieces; None for T5's 100, or 0 if the model has a
        token that begins texts, as Gemma's has.

    Raises:
      UserError: If the file does not exist or is not a SentencePiece model.
    """
    path = folder = os.path.expanduser(path)
    if os.path.isdir(path) or path.endswith(".json"):
        path = os.fspath(vocabularies.file_of(path))
    try:
        exists = tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)
    except tf.errors.OpError as error:
        raise UserError(f"VOCABULARY = {path}: cannot be read ({error.message})") from error
    if not exists:
        raise UserError(f"VOCABULARY = {path}: no such file")
    try:
        if extra_ids is None:
            plain = seqio.SentencePieceVocabulary(path)
            extra_ids = vocabularies.sentinels(begin_of(plain))
        loaded = seqio.SentencePieceVocabulary(path, extra_ids)
        loaded.load_model()
    except Exception as error:  # protobuf, SentencePiece and SeqIO each raise their own
        raise UserError(f"VOCABULARY = {path}: not a SentencePiece model") from error
    vocabularies.check_special(loaded.tokenizer, f"VOCABULARY = {path}")
    vocabularies.warn_of_added(folder, loaded.tokenizer)
    return loaded


def begin_of(vocabulary: seqio.Vocabulary) -> list[int]:
    """The ids in front of every input: Gemma's `<bos>`; none for vocabularies without such."""
    has_pieces = isinstance(vocabulary, seqio.SentencePieceVocabulary)
    return list(vocabularies.begin_of_pieces(vocabulary.tokenizer)) if has_pieces else []


def fingerprint(vocabulary: seqio.Vocabulary) -> str:
    """What cards record of a vocabulary; "" for one that is neither SentencePiece's nor bytes."""
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        pieces = vocabulary.vocab_size - vocabulary.extra_ids
        return vocabularies.fingerprint_of(vocabulary.tokenizer, pieces)
    return vocabularies.BYTES if isinstance(vocabulary, seqio.ByteVocabulary) else ""


def begin_inputs(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """A preprocessor after `seqio.preprocessors.tokenize`, which puts `begin_of` before inputs."""
    begin = begin_of(output_features["inputs"].vocabulary)
    if not begin:
        return dataset

    @seqio.map_over_dataset
    def add(example: TfExample) -> TfExample:
        return example | {"inputs": tf.concat([begin, example["inputs"]], axis=0)}

    return add(dataset)


def features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """Output features of the package's tasks: inputs and targets, each with an end token."""
    return {
        "inputs": seqio.Feature(vocabulary, add_eos=True),
        "targets": seqio.Feature(vocabulary, add_eos=True),
    }


def register(
    name: str,
    rows: Mapping[str, Callable[[], list[Row]]],
    vocabulary: seqio.Vocabulary,
    metric_fns: Sequence[MetricFn] = (accuracy,),
    labels: Sequence[str] = (),
    text_fields: Sequence[str] = (),
) -> Task:
    """Registers a SeqIO task of rows, replacing any of the same name.

    Args:
      name: Name of the task.
      rows: A function per split that returns its rows; called when the split is read.
      vocabulary: Vocabulary of inputs and targets.
      metric_fns: Metrics; their parameters must be named `targets` and `predictions`.
      labels: Label words to choose from; empty for text to text.
      text_fields: See `add`.
    """
    return add(
        name,
        source=RowSource(rows),
        preprocessors=[
            seqio.preprocessors.tokenize,
            begin_inputs,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=features(vocabulary),
        metric_fns=metric_fns,
        labels=labels,
        text_fields=text_fields,
    )


def register_files(name: str, files: TextFiles, vocabulary: seqio.Vocabulary) -> Task:
    """Registers the splits, fields, labels and metrics of `files`; see `register`."""

    def written(text: str) -> str:
        return decode(vocabulary, vocabulary.encode(text)).strip()

    metric_fns = metrics.by_name(files.metrics, files.labels, written)
    rows = {split: functools.partial(files.rows, split) for split in files.splits}
    return register(name, rows, vocabulary, metric_fns, files.labels, files.text_fields)


def text_of(task: seqio.Task, example: Mapping[str, Any], name: str) -> str:
    """The text of a feature: as `seqio.preprocessors.tokenize` kept it, else decoded from ids."""
    text = example.get(f"{name}_pretokenized")
    if isinstance(text, bytes):
        return text.decode()
    return decode(task.output_features[name].vocabulary, example[name])


def decode(vocabulary: seqio.Vocabulary, ids: Sequence[int]) -> str:
    """The text of token ids, which may be NumPy integers."""
    return vocabulary.decode([int(i) for i in ids])


def register_demo_tasks(vocabulary: seqio.Vocabulary) -> None:
    """Registers `demo_reviews`, `demo_questions` and `demo_topics`, whose rows are embedded."""
    for name, labels in DEMO_LABELS.items():
        train, validation, test = (embedded.data(name, split) for split in MACROS)
        files = TextFiles(train, validation, test, labels=labels)
        register_files(name, files, vocabulary)


register_demo_tasks(vocabulary(embedded.vocabulary()))
