"""Tasks of texts over TensorFlow Datasets or over local files; only the source differs."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prompt_tuning.data import tasks
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.local_files import SPLITS, Folder, FolderSource, saved_source
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
        """Over the files of those of `splits` that are there; None if none is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask:
    """A SeqIO task whose source is chosen when it is registered.

    Attributes:
      task: name of the SeqIO task.
      tfds_name: data set, configuration and version of TensorFlow Datasets.
      format: the preprocessor that makes texts of the source's fields.
      objective: a preprocessor of tokens, for pre-training.
      postprocess: of targets and predictions; None to compare the texts.
      metrics: the first chooses the best step.
      labels: words in the order of the labels' numbers; none for other than classification.
      splits: of TensorFlow Datasets; a mapping if SeqIO's names for them are others.
      hidden: splits whose targets TensorFlow Datasets does not have.
      local: its local files, if it can be read from some.
      examples_per_row: of the training split, where a row makes several or some make none.
    """

    task: str
    tfds_name: str
    format: Preprocessor
    objective: Preprocessor | None = None
    postprocess: Callable[..., Any] | None = None
    metrics: Sequence[Callable[..., Mapping[str, float]]] = ()
    labels: Sequence[str] = ()
    splits: Sequence[str] | Mapping[str, str] = SPLITS
    hidden: Sequence[str] = ()
    local: Local | None = None
    examples_per_row: float = 1.0


def register(
    text_tasks: Sequence[TextTask],
    vocabulary: seqio.Vocabulary,
    source: str | Path = TFDS,
    bad_rows: BadRows | None = None,
) -> tuple[str, ...]:
    """Registers the SeqIO tasks, replacing those of the same name; downloads nothing.

    Args:
      text_tasks: of which a folder that does not hold one leaves it out.
      vocabulary: of inputs and targets.
      source: "tfds", or a folder of data sets: files as `LocalFiles` describes, or saved ones as
        `saved_source` does.
      bad_rows: which malformed rows of local files are skipped; None for none.

    Returns:
      The names of those registered.

    Raises:
      UserError: if the folder holds none of them.
    """
    folder = None if source == TFDS else Folder(Path(source).expanduser(), bad_rows or BadRows())
    if folder and not folder.root.is_dir():
        raise UserError(f"BENCHMARKS_DIR = {source}: no such folder")
    names = tuple(task.task for task in text_tasks if _register(task, vocabulary, folder))
    if not names:
        folders = sorted({task.local.folder for task in text_tasks if task.local})
        raise UserError(
            f"{source}: no saved data sets, and no .jsonl files in folders named "
            f"{', '.join(folders)}"
        )
    return names


def add_mixture(
    name: str, parts: Sequence[tuple[TextTask, Rate]], there: Collection[str]
) -> tuple[str, ...]:
    """Registers a mixture, replacing one of the same name; its label words are those of all parts.

    Args:
      name: of the mixture.
      parts: tasks and their mixing rates; what of them has the split "train" is trained on.
      there: names of registered tasks; other parts are left out.

    Returns:
      `name`, or nothing if fewer than two parts are there.
    """
    found = [(part, rate) for part, rate in parts if part.task in there]
    if len(found) < 2:
        return ()
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, [(part.task, rate) for part, rate in found])
    tasks.LABELS[name] = tuple(dict.fromkeys(word for part, _ in found for word in part.labels))
    return (name,)


def add_equal_mixtures(
    mixtures: Mapping[str, Sequence[TextTask]], there: Collection[str]
) -> tuple[str, ...]:
    """`add_mixture` of each, with all parts at the same rate; returns the names."""
    return tuple(
        added
        for name, parts in mixtures.items()
        for added in add_mixture(name, [(part, 1.0) for part in parts], there)
    )


def _register(text_task: TextTask, vocabulary: seqio.Vocabulary, folder: Folder | None) -> bool:
    """Whether the folder has the task, or it comes from TensorFlow Datasets."""
    found, hidden = _source(text_task, folder)
    if found is None:
        return False
    name = text_task.task
    tasks.LABELS[name] = tuple(text_task.labels)
    tasks.HIDDEN_SPLITS[name] = tuple(hidden)
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=found,
        preprocessors=[
            _Format(text_task.format, found.folder)
            if isinstance(found, FolderSource)
            else text_task.format,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            *([text_task.objective] if text_task.objective else []),
            seqio.preprocessors.append_eos_after_trim,
        ],
        postprocess_fn=text_task.postprocess,
        metric_fns=list(text_task.metrics),
        output_features=tasks.features(vocabulary),
        **tasks.shuffling(found),
    )
    return True


@dataclasses.dataclass(frozen=True)
class _Format:
    """A preprocessor of a folder's data set that names the field that it misses."""

    format: Preprocessor
    folder: Path

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        try:
            return self.format(dataset)
        except KeyError as error:
            name = str(error.args[0]).removeprefix("KeyError: ").strip("'")  # TensorFlow adds it
            there = ", ".join(sorted(dataset.element_spec))
            raise UserError(f"{self.folder}: no field {name!r}; there are: {there}") from error


def _source(
    text_task: TextTask, folder: Folder | None
) -> tuple[seqio.DataSource | None, Sequence[str]]:
    """The source of a task, if there is one, and its splits without targets."""
    if folder is None:
        found = seqio.TfdsDataSource(text_task.tfds_name, splits=text_task.splits)
        return found, text_task.hidden
    if saved := saved_source(folder, text_task.tfds_name, text_task.splits, text_task.labels):
        return saved, text_task.hidden
    return (text_task.local.source(folder, text_task.splits) if text_task.local else None), ()
