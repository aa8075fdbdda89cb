"""Text tasks over TensorFlow Datasets or over local files, which differ in the source only."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prompt_tuning.data import tasks
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.local_files import (
    SPLITS,
    Between,
    Folder,
    FolderSource,
    saved_source,
)
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.errors import UserError

TFDS = "tfds"

Preprocessor = Callable[..., tf.data.Dataset]
Rate = float | Callable[[seqio.Task], float]


class Local(Protocol):
    """Where a folder of data sets keeps one of them."""

    @property
    def folder(self) -> str: ...

    def source(self, folder: Folder, splits: Collection[str]) -> seqio.DataSource | None:
        """A source over the existing files of `splits`; None if there are none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask:
    """A SeqIO task whose source is chosen when it is registered.

    Attributes:
      task: Name of the SeqIO task.
      tfds_name: Data set, configuration and version of TensorFlow Datasets.
      format: Preprocessor from the source's fields to texts.
      objective: Preprocessor of tokens, for pre-training; None for none.
      postprocess: Postprocessor of targets and predictions; None to compare the texts.
      metrics: Metrics, the first of which chooses the best step.
      labels: Label words in the order of the labels' numbers; empty unless it is classification.
      scores: Range of labels that are numbers; None for none.
      splits: Splits of TensorFlow Datasets; a mapping where SeqIO's names differ from these.
      hidden: Splits whose targets TensorFlow Datasets does not have.
      local: Where local data sets keep it; None if it is read otherwise.
      sites: Where the folders that its sites distribute keep it; these come before `local`.
      examples_per_row: Examples per row of the training split, where they are not as many.
    """

    task: str
    tfds_name: str
    format: Preprocessor
    objective: Preprocessor | None = None
    postprocess: Callable[..., Any] | None = None
    metrics: Sequence[Callable[..., Mapping[str, float]]] = ()
    labels: Sequence[str] = ()
    scores: Between | None = None
    splits: Sequence[str] | Mapping[str, str] = SPLITS
    hidden: Sequence[str] = ()
    local: Local | None = None
    sites: Sequence[Local] = ()
    examples_per_row: float = 1.0


def register(
    text_tasks: Sequence[TextTask],
    vocabulary: seqio.Vocabulary,
    source: str | Path = TFDS,
    bad_rows: BadRows | None = None,
) -> tuple[str, ...]:
    """Registers the SeqIO tasks, replacing those of the same name; downloads nothing.

    Args:
      text_tasks: Tasks; those that the folder `source` does not contain are left out.
      vocabulary: Vocabulary of inputs and targets.
      source: "tfds", or a folder of data sets: files as `LocalFiles` describes, or saved ones as
        `saved_source` does.
      bad_rows: Counter of the malformed rows of local files that are skipped; None to skip none.

    Returns:
      The names of the registered tasks.

    Raises:
      UserError: If the folder does not exist or contains none of the tasks.
    """
    folder = None if source == TFDS else Folder(Path(source).expanduser(), bad_rows or BadRows())
    if folder and not folder.root.is_dir():
        raise UserError(f"BENCHMARKS_DIR = {source}: no such folder")
    names = tuple(task.task for task in text_tasks if _register(task, vocabulary, folder))
    if not names:
        folders = sorted({local.folder for task in text_tasks for local in _local(task)})
        raise UserError(
            f"BENCHMARKS_DIR = {source}: no saved data sets, and no files in folders named "
            f"{', '.join(folders)}"
        )
    return names


def add_mixture(
    name: str, rates: Sequence[tuple[TextTask, Rate]], registered: Collection[str]
) -> tuple[str, ...]:
    """Registers a mixture of those tasks that are registered.

    Args:
      name: Name of the mixture.
      rates: Tasks with their mixing rates; those with a split "train" are trained on.
      registered: Names of registered tasks; others are left out.

    Returns:
      `name`, or nothing if fewer than two tasks are registered.
    """
    by_name = {part.task: rate for part, rate in rates if part.task in registered}
    if len(by_name) < 2:
        return ()
    tasks.add_mixture(name, by_name)
    return (name,)


def add_equal_mixtures(
    mixtures: Mapping[str, Sequence[TextTask]], registered: Collection[str]
) -> tuple[str, ...]:
    """Registers mixtures with `add_mixture`, all parts at the same rate; returns their names."""
    return tuple(
        added
        for name, parts in mixtures.items()
        for added in add_mixture(name, [(part, 1.0) for part in parts], registered)
    )


def _register(text_task: TextTask, vocabulary: seqio.Vocabulary, folder: Folder | None) -> bool:
    """Registers a task; returns False if the folder does not contain its data."""
    source, hidden_splits = _source(text_task, folder)
    if source is None:
        return False
    tasks.add(
        text_task.task,
        source=source,
        preprocessors=[
            _Format(text_task.format, source.folder)
            if isinstance(source, FolderSource)
            else text_task.format,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            *([text_task.objective] if text_task.objective else []),
            tasks.begin_inputs,
            seqio.preprocessors.append_eos_after_trim,
        ],
        postprocess_fn=text_task.postprocess,
        metric_fns=text_task.metrics,
        output_features=tasks.features(vocabulary),
        labels=text_task.labels,
        hidden_splits=hidden_splits,
    )
    return True


@dataclasses.dataclass(frozen=True)
class _Format:
    """A preprocessor of a folder's data set whose error names the missing field."""

    format: Preprocessor
    folder: Path

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        try:
            return self.format(dataset)
        except KeyError as error:
            name = str(error.args[0]).removeprefix("KeyError: ").strip("'")  # TensorFlow adds it
            available = ", ".join(sorted(dataset.element_spec))
            raise UserError(f"{self.folder}: no field {name!r}; available: {available}") from error


def _source(
    text_task: TextTask, folder: Folder | None
) -> tuple[seqio.DataSource | None, Sequence[str]]:
    """A task's source, None if the folder does not contain it, and its splits without targets."""
    if folder is None:
        source = seqio.TfdsDataSource(text_task.tfds_name, splits=text_task.splits)
        return source, text_task.hidden
    of_labels = text_task.labels, text_task.scores
    saved = saved_source(folder, text_task.tfds_name, text_task.splits, *of_labels)
    local = [local.source(folder, text_task.splits) for local in _local(text_task)]
    found = [source for source in (saved, *local) if source]
    folders = [source for source in found if isinstance(source, FolderSource)]
    if len(folders) > 1:
        one, other = (next(iter(source.paths.values())) for source in folders[:2])
        raise UserError(f"{one} and {other}: both are of {text_task.task}; keep one")
    if saved:
        return saved, text_task.hidden
    return next(iter(found), None), folders[0].hidden_splits if folders else ()


def _local(text_task: TextTask) -> Sequence[Local]:
    return (*text_task.sites, *([text_task.local] if text_task.local else ()))
