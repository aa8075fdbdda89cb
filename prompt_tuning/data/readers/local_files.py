"""Reads benchmarks from local files or saved data sets, with TensorFlow Datasets' fields."""

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data.quiet import tf
from prompt_tuning.data.readers import records, saved_datasets
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.records import BadRows, shown
from prompt_tuning.errors import UserError

SPLITS = ("train", "validation", "test")
ENDINGS = (".jsonl", ".jsonl.xz", ".jsonl.gz")

Fields = dict[str, Any]
Adapt = Callable[[Fields, str], Fields]
AdaptAll = Callable[[list[Fields], Path], list[Fields]]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of data sets, and the counter of their malformed rows that are skipped."""

    root: Path
    bad_rows: BadRows = dataclasses.field(default_factory=BadRows, compare=False)


@dataclasses.dataclass(frozen=True)
class LocalFiles:
    """Where a folder of data sets keeps a benchmark as JSON lines.

    Attributes:
      folder: Subfolder with `train.jsonl`, `validation.jsonl` and `test.jsonl`, plain, .xz or .gz.
      columns: Type of each field that is read, or the words that a label's number stands for.
      renamed: The file's name of a column by TensorFlow Datasets' name, where they differ.
      adapt: Makes TensorFlow Datasets' fields of a row's; its second argument is file and line.
      adapt_all: Does so for all rows at once, each with "idx"; its second argument is the path.
    """

    folder: str
    columns: Mapping[str, type | Sequence[str]]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adapt: Adapt | None = None
    adapt_all: AdaptAll | None = None

    def paths(self, root: Path) -> dict[str, Path]:
        """The existing file of each split."""
        paths = {split: _file(root / self.folder, split) for split in SPLITS}
        return {split: path for split, path in paths.items() if path}

    def rows(self, path: Path, bad_rows: BadRows) -> list[Fields]:
        """Reads a file's examples, with TensorFlow Datasets' fields; "idx" counts them.

        Raises:
          UserError: For the first malformed row that `bad_rows` does not skip; the message names
            file and line.
        """
        numbered = enumerate(records.read(path, self._row, bad_rows))
        rows = [{"idx": number, **row} for number, row in numbered]
        return self.adapt_all(rows, path) if self.adapt_all else rows

    def source(self, folder: Folder, splits: Collection[str]) -> "FolderSource | None":
        """A source over the existing files of `splits`; None if there are none."""
        existing = self.paths(folder.root).items()
        paths = {split: path for split, path in existing if split in splits}
        return FolderSource(self.rows, paths, folder.bad_rows) if paths else None

    def _row(self, fields: Fields, where: str) -> Fields:
        row = _row(fields, self.columns, where, self.renamed)
        return self.adapt(row, where) if self.adapt else row


class FolderSource(MemorySource):
    """A source of local files, with TensorFlow Datasets' fields."""

    def __init__(
        self,
        rows: Callable[[Path, BadRows], list[Fields]],
        paths: Mapping[str, Path],
        bad_rows: BadRows,
    ) -> None:
        super().__init__(paths)
        self._rows, self._paths, self._bad_rows = rows, dict(paths), bad_rows

    @property
    def folder(self) -> Path:
        return next(iter(self._paths.values())).parent

    def columns(self, split: str) -> dict[str, Any]:
        rows = self._rows(self._paths[split], self._bad_rows)
        return {name: _column([row[name] for row in rows]) for name in rows[0]}


def saved_source(
    folder: Folder,
    tfds_name: str,
    splits: Collection[str] | Mapping[str, str],
    labels: Sequence[str],
) -> FolderSource | None:
    """A source over saved data sets; None if there are none.

    Args:
      folder: Folder of data sets; `glue/rte/train` or `rte/train` in it is read for
        "glue/rte:2.0.0".
      tfds_name: Data set, configuration and version of TensorFlow Datasets.
      splits: Splits; a mapping where SeqIO's names for them differ from the folders'.
      labels: Label words in the order of the labels' numbers; empty for none.
    """
    name = tfds_name.partition(":")[0]
    names = splits if isinstance(splits, Mapping) else {split: split for split in splits}
    for parent in (folder.root / name, folder.root / name.split("/")[-1]):
        candidates = {split: parent / subfolder for split, subfolder in names.items()}
        saved = {split: path for split, path in candidates.items() if saved_datasets.is_saved(path)}
        if saved:
            rows = functools.partial(_saved_rows, labels=labels)
            return FolderSource(rows, saved, folder.bad_rows)
    return None


def _saved_rows(path: Path, bad_rows: BadRows, labels: Sequence[str]) -> list[Fields]:
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


def _file(folder: Path, split: str) -> Path | None:
    paths = (folder / f"{split}{ending}" for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _row(
    fields: Fields,
    columns: Mapping[str, type | Sequence[str]],
    where: str,
    renamed: Mapping[str, str] = types.MappingProxyType({}),
) -> Fields:
    return {
        name: _checked(fields, renamed.get(name, name), kind, where)
        for name, kind in columns.items()
    }


def _checked(
    fields: Mapping[str, Any], name: str, kind: type | Sequence[str], where: str
) -> str | int | float | list[str]:
    value = records.field(dict(fields), name, where)
    if kind is str and isinstance(value, str):  # a few answers of MultiRC are empty
        return records.check_text(value, name, where)
    if kind is int and type(value) is int:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is list and isinstance(value, list) and all(isinstance(x, str) for x in value):
        return value
    if isinstance(kind, type):
        what = {str: "a text", int: "a whole number", float: "a number", list: "a list of texts"}
        raise UserError(f"{where}: {name!r} is {shown(value)}, not {what[kind]}")
    if type(value) is int and 0 <= value < len(kind):
        return value
    raise UserError(f"{where}: {name!r} is {_not_one_of(value, kind)}")


def _not_one_of(value: Any, words: Sequence[str]) -> str:
    return f"{shown(value)}, not a number from 0 to {len(words) - 1} ({', '.join(words)})"


def boolq_row(row: Fields, _: str) -> Fields:
    # SuperGLUE's passages begin with the title, which BoolQ has in a field of its own.
    return row | {"passage": f"{row['title']} -- {row['passage']}"}


def multirc_rows(rows: list[Fields], path: Path) -> list[Fields]:
    split = path.name.split(".")[0]
    passages = _file(path.parent, f"passages_{split}")
    if passages is None:
        raise UserError(f"{path}: needs passages_{split}.jsonl in the same folder")
    columns = {"idx": int, "text": str}
    rows_read = records.read(
        passages, lambda fields, where: _row(fields, columns, where), BadRows()
    )
    texts = {passage["idx"]: passage["text"] for passage in rows_read}
    if missing := {row["pid"] for row in rows} - set(texts):
        raise UserError(f"{passages}: no passage {min(missing)}, which {path.name} refers to")
    parts = {"paragraph": "pid", "question": "qid", "answer": "aid"}
    return [
        row
        | {
            "paragraph": texts[row["pid"]],
            "idx": {part: row[number] for part, number in parts.items()},
        }
        for row in rows
    ]


def record_rows(rows: list[Fields], _: Path) -> list[Fields]:
    return [row | {"idx": {"passage": row["idx"], "query": row["idx"]}} for row in rows]


def wsc_row(row: Fields, where: str) -> Fields:
    spans = {f"{span}_text": _as_in_text(row, span) for span in ("span1", "span2")}
    if not spans["span1_text"] or spans["span2_text"] not in row["text"]:
        raise UserError(f"{where}: its spans are not in its text")
    return row | spans


def _as_in_text(row: Fields, span: str) -> str:
    """A span spelled as in the text, as TensorFlow Datasets' `wsc.fixed` corrects it."""
    words, text = row[f"{span}_text"], row["text"]
    at_index = text.split()[row[f"{span}_index"] :][:1]
    if words in text or not at_index:
        return words
    first = at_index[0][0]
    case = str.lower if first.islower() else str.upper
    return (case(words[0]) + words[1:]).rstrip(".").replace("\n", " ")
