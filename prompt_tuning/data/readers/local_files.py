"""Reads benchmarks from local files or saved data sets, with TensorFlow Datasets' fields.

The files that a benchmark's site distributes become what TensorFlow Datasets makes of them.
"""

import contextlib
import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data import label_words
from prompt_tuning.data.quiet import tf
from prompt_tuning.data.readers import records, saved_datasets
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.records import BadRows, shown
from prompt_tuning.errors import UserError

SPLITS = ("train", "validation", "test")
# Names of a split's file without its ending, as benchmarks' sites spell them.
STEMS: Mapping[str, Sequence[str]] = {
    "train": ("train",),
    "validation": ("validation", "val", "dev"),
    "test": ("test",),
}
JSON_LINES = (".jsonl", ".jsonl.xz", ".jsonl.gz")
TSV = (".tsv", ".tsv.xz", ".tsv.gz")

Fields = dict[str, Any]
Expand = Callable[[Fields], list[Fields]]
Adapt = Callable[[Fields, str], Fields]
AdaptAll = Callable[[list[Fields], Path], list[Fields]]


@dataclasses.dataclass(frozen=True)
class Between:
    """The type of a column of numbers that are all in a range, its ends included."""

    low: float
    high: float

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


Kind = type | Between | Sequence[str]  # of a column; words are those of a label


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of data sets, and the counter of their malformed rows that are skipped."""

    root: Path
    bad_rows: BadRows = dataclasses.field(default_factory=BadRows, compare=False)


@dataclasses.dataclass(frozen=True)
class LocalFiles:
    """Where a folder of data sets keeps a benchmark, and how its rows are written.

    Attributes:
      folder: Subfolder with a file per split; capitals and hyphens in its name do not matter
        ("sst2" is also "SST-2").
      columns: Type or range of each field that is read, or the words of a label, which rows may
        give as its number, as the word, or as a truth value.
      renamed: The file's name of a column by TensorFlow Datasets' name, where they differ.
      adapt: Makes TensorFlow Datasets' fields of a row's; its second argument is file and line.
      adapt_all: Does so for all rows at once, each with "idx"; its second argument is the path.
      optional: Type of each further field that rows may lack.
      expand: Makes the rows of `columns` of one as the benchmark's site writes it.
      stems: Names of each split's file without ending.
      endings: Endings of the files; the first one that exists is read.
      headers: Names of the columns of splits whose tables have no header.
      target: Column that all rows of a test split may lack; "" for none.
      hidden: Value of `target` in such a split, which is not public.
    """

    folder: str
    columns: Mapping[str, Kind]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adapt: Adapt | None = None
    adapt_all: AdaptAll | None = None
    optional: Mapping[str, type] = dataclasses.field(default_factory=dict)
    expand: Expand | None = None
    stems: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=lambda: STEMS)
    endings: Sequence[str] = JSON_LINES
    headers: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    target: str = ""
    hidden: Any = -1

    def paths(self, root: Path) -> dict[str, Path]:
        """The existing file of each split.

        Raises:
          UserError: If two folders, or two files of one split, exist.
        """
        folder = subfolder(root, self.folder)
        paths = {split: file_of(folder, stems, self.endings) for split, stems in self.stems.items()}
        return {split: path for split, path in paths.items() if path}

    def rows(self, split: str, path: Path, bad_rows: BadRows) -> list[Fields]:
        """Reads a file's examples, with TensorFlow Datasets' fields; "idx" counts them.

        Raises:
          UserError: For the first malformed row that `bad_rows` does not skip; the message names
            file and line. Also if some rows of a test split lack their target, but not all.
        """
        lines = records.read(
            path,
            functools.partial(self._rows, split),
            bad_rows,
            **self._format(split),
        )
        rows = [{"idx": number, **row} for number, row in enumerate(itertools.chain(*lines))]
        if not rows:
            raise UserError(f"{path}: no rows")
        if _may_be_hidden(split) and self.target:
            hidden = sum(row[self.target] == self.hidden for row in rows)
            if hidden not in (0, len(rows)):
                raise UserError(
                    f"{path}: {hidden} of {len(rows)} rows have no {self._file_name(self.target)!r}"
                )
        return self.adapt_all(rows, path) if self.adapt_all else rows

    def source(self, folder: Folder, splits: Collection[str]) -> "FolderSource | None":
        """A source over the existing files of `splits`; None if there are none."""
        existing = self.paths(folder.root).items()
        paths = {split: path for split, path in existing if split in splits}
        hidden = [split for split, path in paths.items() if self._is_hidden(split, path)]
        return FolderSource(self.rows, paths, folder.bad_rows, hidden) if paths else None

    def _is_hidden(self, split: str, path: Path) -> bool:
        """Whether the first row of a test split lacks its target."""
        if not self.target or not _may_be_hidden(split):
            return False
        with contextlib.suppress(UserError):  # which is raised when the split is read
            rows = functools.partial(self._rows, split)
            lines = records.stream(path, rows, BadRows(), **self._format(split))
            return next(itertools.chain.from_iterable(lines))[self.target] == self.hidden
        return False

    def _format(self, split: str) -> dict[str, Any]:
        """How `records` is to read a split's file."""
        columns = self.headers.get(split, ())
        return {"quoted_cells": False, "columns": columns, "ending": self.endings[0]}

    def _rows(self, split: str, fields: Fields, where: str) -> list[Fields]:
        try:
            expanded = self.expand(fields) if self.expand else [fields]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where}: not a row of {self.folder} as its site writes them ({error!r})"
            ) from error
        return [self._row(row, split, where) for row in expanded]

    def _row(self, fields: Fields, split: str, where: str) -> Fields:
        columns = {name: kind for name, kind in self.columns.items() if name != self.target}
        columns |= {k: kind for k, kind in self.optional.items() if self._file_name(k) in fields}
        hidden: Fields = {}
        if self.target:
            name = self._file_name(self.target)
            if self.target in fields and name not in fields:
                raise UserError(
                    f"{where}: has a column {self.target!r}; files of {self.folder} have {name!r} "
                    "in its place: rename it"
                )
            value = fields.get(name, self.hidden)
            number = label_words.number(value) if isinstance(value, str) else None
            if _may_be_hidden(split) and self.hidden in (value, number):
                hidden = {self.target: self.hidden}
            else:
                columns[self.target] = self.columns[self.target]
        row = checked_row(fields, columns, where, self.renamed) | hidden
        return self.adapt(row, where) if self.adapt else row

    def _file_name(self, name: str) -> str:
        return self.renamed.get(name, name)


def _may_be_hidden(split: str) -> bool:
    return split.startswith("test")


class FolderSource(MemorySource):
    """A source of local files, with TensorFlow Datasets' fields.

    Args:
      rows: Reads a split's rows from its file.
      paths: File of each split.
      bad_rows: Counter of the malformed rows that are skipped.
      hidden_splits: Splits whose rows have no targets.
    """

    def __init__(
        self,
        rows: Callable[[str, Path, BadRows], list[Fields]],
        paths: Mapping[str, Path],
        bad_rows: BadRows,
        hidden_splits: Sequence[str] = (),
    ) -> None:
        super().__init__(paths)
        self._rows, self.paths, self._bad_rows = rows, dict(paths), bad_rows
        self.hidden_splits = tuple(hidden_splits)

    @property
    def folder(self) -> Path:
        return next(iter(self.paths.values())).parent

    def columns(self, split: str) -> dict[str, Any]:
        rows = self._rows(split, self.paths[split], self._bad_rows)
        return {name: _column([row[name] for row in rows]) for name in rows[0]}


def saved_source(
    folder: Folder,
    tfds_name: str,
    splits: Collection[str] | Mapping[str, str],
    labels: Sequence[str],
    scores: Between | None = None,
) -> FolderSource | None:
    """A source over saved data sets; None if there are none.

    Args:
      folder: Folder of data sets; `glue/rte/train` or `rte/train` in it is read for
        "glue/rte:2.0.0".
      tfds_name: Data set, configuration and version of TensorFlow Datasets.
      splits: Splits; a mapping where SeqIO's names for them differ from the folders'.
      labels: Label words in the order of the labels' numbers; empty for none.
      scores: Range of labels that are numbers; None for none.
    """
    name = tfds_name.partition(":")[0]
    names = splits if isinstance(splits, Mapping) else {split: split for split in splits}
    for parent in (folder.root / name, folder.root / name.split("/")[-1]):
        candidates = {split: parent / subfolder for split, subfolder in names.items()}
        saved = {split: path for split, path in candidates.items() if saved_datasets.is_saved(path)}
        if saved:
            rows = functools.partial(_saved_rows, labels=labels, scores=scores)
            return FolderSource(rows, saved, folder.bad_rows)
    return None


def _saved_rows(
    _: str, path: Path, bad_rows: BadRows, *, labels: Sequence[str], scores: Between | None
) -> list[Fields]:
    saved_datasets.check_order(path, "label", labels)
    lowest = -1 if path.name.startswith("test") else 0  # -1: the label is not public

    def row(fields: Fields, where: str) -> Fields:
        for name, value in fields.items():
            if value is None:
                raise UserError(f"{where}: {name!r} is null")
            if isinstance(value, str):
                records.check_text(value, name, where)
        if labels:
            label = records.field(fields, "label", where)
            if type(label) is not int or not lowest <= label < len(labels):
                raise UserError(f"{where}: 'label' is {_not_one_of(label, labels)}")
        if scores and not (lowest < 0 and records.field(fields, "label", where) == -1):
            _checked(fields, "label", scores, where)
        return fields

    return records.read(path, row, bad_rows)


def _column(values: list[Any]) -> Any:
    match values[0]:
        case dict():
            return {name: _column([value[name] for value in values]) for name in values[0]}
        case list():
            return _ragged(values)
        case _:
            return tf.constant(values)


def _ragged(values: list[list[Any]]) -> Any:
    match next((item for value in values for item in value), ""):
        case dict() as first:
            return {
                name: _ragged([[item[name] for item in value] for value in values])
                for name in first
            }
        case str():
            return tf.ragged.constant(values, tf.string)
        case _:
            return tf.ragged.constant(values)


def subfolder(root: Path, name: str) -> Path:
    """The subfolder of a name, whatever its capitals and hyphens."""
    folders = [
        path
        for path in sorted(root.iterdir())
        if path.name.lower().replace("-", "") == name and path.is_dir()
    ]
    if len(folders) > 1:
        raise UserError(
            f"BENCHMARKS_DIR = {root}: {folders[0].name} and {folders[1].name} are folders of the "
            "same task; keep one"
        )
    return folders[0] if folders else root / name


def file_of(folder: Path, stems: Sequence[str], endings: Sequence[str] = JSON_LINES) -> Path | None:
    """The file of one of the stems and endings, if there is one.

    Raises:
      UserError: If there are several.
    """
    paths = (folder / f"{stem}{ending}" for stem in stems for ending in endings)
    existing = [path for path in paths if path.is_file()]
    if len(existing) > 1:
        raise UserError(f"{existing[0]} and {existing[1].name}: two files for one split")
    return existing[0] if existing else None


def checked_row(
    fields: Fields,
    columns: Mapping[str, Kind],
    where: str,
    renamed: Mapping[str, str] = types.MappingProxyType({}),
) -> Fields:
    """The fields of a row that are columns, each of its column's type.

    Raises:
      UserError: If one is missing or of another type; the message begins with `where`.
    """
    return {
        name: _checked(fields, renamed.get(name, name), kind, where)
        for name, kind in columns.items()
    }


def _checked(
    fields: Mapping[str, Any], name: str, kind: Kind, where: str
) -> str | int | float | list[str]:
    value = records.field(dict(fields), name, where)
    if isinstance(kind, Between):
        number = _checked(fields, name, float, where)
        if not isinstance(number, float) or number not in kind:
            raise UserError(f"{where}: {name!r} is {shown(value)}, not {kind}")
        return number
    if not isinstance(kind, type):
        word = label_words.word_of(value, kind)
        if word is None:
            raise UserError(f"{where}: {name!r} is {_not_one_of(value, kind)}")
        return kind.index(word)
    if kind is str and isinstance(value, str):  # a few answers of MultiRC are empty
        return records.check_text(value, name, where)
    if kind is int and type(value) is int:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is float and isinstance(value, str) and label_words.number(value) is not None:
        return float(value)
    if kind is list and isinstance(value, list) and all(isinstance(x, str) for x in value):
        return value
    what = {str: "a text", int: "a whole number", float: "a number", list: "a list of texts"}
    raise UserError(f"{where}: {name!r} is {shown(value)}, not {what[kind]}")


def _not_one_of(value: Any, words: Sequence[str]) -> str:
    return f"{shown(value)}, not a number from 0 to {len(words) - 1} ({', '.join(words)})"
