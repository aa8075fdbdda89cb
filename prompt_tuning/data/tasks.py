"""SeqIO tasks of texts in memory, and the three demo tasks that come with the package."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data import tasks
from prompt_tuning.data.files import MACROS, Row, TextFiles
from prompt_tuning.data.metrics import accuracy
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import MetricFn


def hidden_splits(task: str) -> tuple[str, ...]:
    """Splits of a registered task that can be predicted on but not measured."""
    return tasks.HIDDEN_SPLITS.get(task, ())


ASSETS = Path(__file__).parents[1] / "assets"
EMBEDDED_VOCABULARY = ASSETS / "backbone" / "vocabulary.model"
DEMO_LABELS = {
    "reviews": ("negative", "positive"),
    "questions": ("abbreviation", "description", "entity", "human", "location", "number"),
    "topics": ("business", "health", "politics", "science", "sport"),
}
LABELS: dict[str, tuple[str, ...]] = {}  # label words of each task of `register`
HIDDEN_SPLITS: dict[str, tuple[str, ...]] = {}  # splits of a task that have no public targets


class RowSource(MemorySource):
    """Rows of texts."""

    def __init__(self, rows: Mapping[str, Callable[[], list[Row]]]) -> None:
        super().__init__(rows)
        self._rows = dict(rows)

    def rows(self, split: str) -> list[Row]:
        return self._rows[split]()

    def columns(self, split: str) -> dict[str, tf.Tensor]:
        rows = self.rows(split)
        return {
            "inputs": tf.constant([row.inputs for row in rows], tf.string),
            "targets": tf.constant([row.targets for row in rows], tf.string),
        }


def vocabulary(path: str | Path, extra_ids: int = 100) -> seqio.SentencePieceVocabulary:
    """A SentencePiece model with T5's sentinels behind its pieces.

    Raises:
      UserError: if there is no such file, or it is no SentencePiece model.
    """
    path = os.path.expanduser(path)
    try:
        there = tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)
    except tf.errors.OpError as error:
        raise UserError(f"VOCABULARY = {path}: cannot be read ({error.message})") from error
    if not there:
        raise UserError(f"VOCABULARY = {path}: no such file")
    found = seqio.SentencePieceVocabulary(path, extra_ids)
    try:
        found.load_model()
    except Exception as error:  # protobuf, SentencePiece and SeqIO each raise their own
        raise UserError(f"VOCABULARY = {path}: not a SentencePiece model of T5's kind") from error
    return found


def features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """The output features of every task here: inputs and targets that end in EOS."""
    return {
        "inputs": seqio.Feature(vocabulary, add_eos=True),
        "targets": seqio.Feature(vocabulary, add_eos=True),
    }


def shuffling(source: seqio.DataSource) -> dict[str, None]:
    """The options of a task whose source may shuffle whole epochs itself, as those in memory do.

    SeqIO's buffer would let the epochs of a small task run into each other.
    """
    return {"shuffle_buffer_size": None} if source.performs_internal_shuffling else {}


def register(
    name: str,
    rows: Mapping[str, Callable[[], list[Row]]],
    vocabulary: seqio.Vocabulary,
    metric_fns: Sequence[MetricFn] = (accuracy,),
    labels: Sequence[str] = (),
) -> seqio.Task:
    """Registers a SeqIO task; replaces one of the same name.

    Args:
      name: of the task.
      rows: split to a function that reads its rows; called when the split is used.
      vocabulary: of inputs and targets.
      metric_fns: their parameters are named `targets` and `predictions`.
      labels: the words to choose from, if it is classification.
    """
    seqio.TaskRegistry.remove(name)
    LABELS[name] = tuple(labels)
    return seqio.TaskRegistry.add(
        name,
        source=RowSource(rows),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features=features(vocabulary),
        metric_fns=list(metric_fns),
        shuffle_buffer_size=None,
    )


def register_files(
    name: str,
    files: TextFiles,
    vocabulary: seqio.Vocabulary,
    metric_fns: Sequence[MetricFn] = (accuracy,),
) -> seqio.Task:
    """`register` with the splits that have a file, and the labels, of `files`."""
    rows = {split: functools.partial(files.rows, split) for split in files.splits}
    return register(name, rows, vocabulary, metric_fns, files.labels)


def labels_of(name: str) -> tuple[str, ...]:
    """The label words of a task; none for text to text and for tasks registered elsewhere."""
    return LABELS.get(name, ())


def text_of(task: seqio.Task, example: Mapping[str, Any], name: str) -> str:
    """The text that `seqio.preprocessors.tokenize` kept; of other pipelines, the tokens' text."""
    text = example.get(f"{name}_pretokenized")
    if isinstance(text, bytes):
        return text.decode()
    return decode(task.output_features[name].vocabulary, example[name])


def decode(vocabulary: seqio.Vocabulary, ids: Sequence[int]) -> str:
    return vocabulary.decode([int(i) for i in ids])


def register_demo_tasks(vocabulary: seqio.Vocabulary) -> None:
    """Registers `demo_reviews`, `demo_questions` and `demo_topics`, over the embedded data."""
    for name, labels in DEMO_LABELS.items():
        train, validation, test = (str(ASSETS / "data" / name / f"{x}.jsonl") for x in MACROS)
        files = TextFiles(train, validation, test, labels=labels)
        register_files(f"demo_{name}", files, vocabulary)


register_demo_tasks(vocabulary(EMBEDDED_VOCABULARY))
