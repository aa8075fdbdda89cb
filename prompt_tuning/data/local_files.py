"""GLUE and SuperGLUE from local JSON-lines files, with the fields that TensorFlow Datasets has."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data import files
from prompt_tuning.data.memory_source import MemorySource
from prompt_tuning.data.quiet import tf
from prompt_tuning.errors import UserError

SPLITS = ("train", "validation", "test")
ENDINGS = (".jsonl", ".jsonl.xz", ".jsonl.gz")

Fields = dict[str, Any]
Adapt = Callable[[list[Fields], Path], list[Fields]]


@dataclasses.dataclass(frozen=True)
class LocalFiles:
    """Where a folder of data sets, such as `tasks/` of the shared data, keeps a benchmark.

    Attributes:
      folder: below it; holds `train.jsonl`, `validation.jsonl`, `test.jsonl`, plain, .xz or .gz.
      columns: the fields that are read: a type, or the words that a label's number stands for.
      renamed: TensorFlow Datasets' name of a column to the file's, where they differ.
      adapt: makes the fields of TensorFlow Datasets of a file's rows; also gets its path.
    """

    folder: str
    columns: Mapping[str, type | Sequence[str]]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adapt: Adapt | None = None

    def paths(self, root: Path) -> dict[str, Path]:
        """The file of each split that is there."""
        found = {split: _file(root / self.folder, split) for split in SPLITS}
        return {split: path for split, path in found.items() if path}

    def rows(self, path: Path) -> list[Fields]:
        """A file's examples, with the fields of TensorFlow Datasets; "idx" counts them.

        Raises:
          UserError: naming file and line, for the first row that is not as it must be.
        """
        rows = _read(path, self.columns, self.renamed)
        return self.adapt(rows, path) if self.adapt else rows


class FolderSource(MemorySource):
    """Examples of local files, with the fields of TensorFlow Datasets."""

    def __init__(self, local: LocalFiles, paths: Mapping[str, Path]) -> None:
        super().__init__(paths)
        self._local, self._paths = local, dict(paths)

    @property
    def folder(self) -> Path:
        return next(iter(self._paths.values())).parent

    def columns(self, split: str) -> dict[str, Any]:
        rows = self._local.rows(self._paths[split])
        return {name: _column([row[name] for row in rows]) for name in rows[0]}


def _column(values: list[Any]) -> Any:
    match values[0]:
        case dict():
            return {name: _column([value[name] for value in values]) for name in values[0]}
        case list():
            return tf.ragged.constant(values, tf.string)
        case _:
            return tf.constant(values)


def _file(folder: Path, split: str) -> Path | None:
    paths = (folder / f"{split}{ending}" for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _read(
    path: Path, columns: Mapping[str, type | Sequence[str]], renamed: Mapping[str, str]
) -> list[Fields]:
    rows: list[Fields] = []
    for line, fields in files.records(path):
        row = {
            name: _checked(fields, renamed.get(name, name), kind, f"{path}, line {line}")
            for name, kind in columns.items()
        }
        rows.append({"idx": len(rows), **row})
    if not rows:
        raise UserError(f"{path}: no rows in it")
    return rows


def _checked(
    fields: Mapping[str, Any], name: str, kind: type | Sequence[str], where: str
) -> str | int | float | list[str]:
    value = files.field(dict(fields), name, where)
    if kind is str and isinstance(value, str):  # a few answers of MultiRC are empty
        return value
    if kind is int and type(value) is int:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is list and isinstance(value, list) and all(isinstance(x, str) for x in value):
        return value
    if isinstance(kind, type):
        what = {str: "a text", int: "a whole number", float: "a number", list: "a list of texts"}
        raise UserError(f"{where}: {name!r} is {str(value)[:60]!r}, not {what[kind]}")
    if type(value) is int and 0 <= value < len(kind):
        return value
    raise UserError(
        f"{where}: {name!r} is {value!r}, not a number from 0 to {len(kind) - 1} "
        f"({', '.join(kind)})"
    )


def boolq_rows(rows: list[Fields], _: Path) -> list[Fields]:
    # SuperGLUE's passages begin with the title, which BoolQ itself keeps apart.
    return [row | {"passage": f"{row['title']} -- {row['passage']}"} for row in rows]


def multirc_rows(rows: list[Fields], path: Path) -> list[Fields]:
    split = path.name.split(".")[0]
    passages = _file(path.parent, f"passages_{split}")
    if passages is None:
        raise UserError(f"{path}: needs passages_{split}.jsonl beside it")
    read = _read(passages, {"number": int, "text": str}, {"number": "idx"})
    texts = {passage["number"]: passage["text"] for passage in read}
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


def wsc_rows(rows: list[Fields], path: Path) -> list[Fields]:
    mended = []
    for row in rows:
        spans = {f"{span}_text": _as_in_text(row, span) for span in ("span1", "span2")}
        if not spans["span1_text"] or spans["span2_text"] not in row["text"]:
            raise UserError(f"{path}: row {row['idx'] + 1}: its spans are not in its text")
        mended.append(row | spans)
    return mended


def _as_in_text(row: Fields, span: str) -> str:
    """A span spelled as the text spells it: what TensorFlow Datasets' `wsc.fixed` mends."""
    words, text = row[f"{span}_text"], row["text"]
    at_index = text.split()[row[f"{span}_index"] :][:1]
    if words in text or not at_index:
        return words
    first = at_index[0][0]
    case = str.lower if first.islower() else str.upper
    return (case(words[0]) + words[1:]).rstrip(".").replace("\n", " ")
