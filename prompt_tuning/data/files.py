"""A user's own data: JSON lines, CSV and TSV files, every row checked before training starts."""

import csv
import dataclasses
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from prompt_tuning.data.corpus import open_text
from prompt_tuning.errors import UserError

# Split to the macro that names its file.
MACROS = {"train": "TRAIN_FILE", "validation": "VALIDATION_FILE", "test": "TEST_FILE"}

Lines = Iterator[tuple[int, str]]  # numbered from 1
Records = Iterator[tuple[int, dict[str, Any]]]  # line that a row starts at, fields by name


@dataclasses.dataclass(frozen=True)
class Row:
    """One example as texts."""

    inputs: str
    targets: str


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """A task of files: `.jsonl`, `.csv` or `.tsv` (with a header), plain, `.gz` or `.xz`.

    With `labels` it is classification: a row's label is one of them or its index, and the target
    is the word. Without, it is text to text: the label field holds the target.

    Attributes:
      train, validation, test: path of a split's file; "" where there is none.
      text_field: field of the input text; several are joined T5's way, "a: ... b: ...".
      label_field: field of the label or target; "" for texts without any, to predict on.
      labels: the label words.

    Raises:
      UserError: if `labels` is not a list of different words.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    text_field: str | Sequence[str] = "text"
    label_field: str = "label"
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        words = [label for label in self.labels if isinstance(label, str) and label.strip()]
        if isinstance(self.labels, str) or len(set(words)) != len(self.labels):
            raise UserError(f"CLASS_LABELS = {self.labels!r}: must be a list of different words")
        if not self.text_field:
            raise UserError("TEXT_FIELD is empty: name the field of the text, or several")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a file."""
        return tuple(split for split in MACROS if getattr(self, split))

    def rows(self, split: str) -> list[Row]:
        """All rows of "train", "validation" or "test", in the file's order.

        Raises:
          UserError: naming file and line, for the first row that is not as it must be.
        """
        if split not in self.splits:
            macro = MACROS.get(split)
            hint = f"set {macro}" if macro else f"there are {', '.join(MACROS)}"
            raise UserError(f"no file for the split {split!r}: {hint}")
        path = Path(getattr(self, split)).expanduser()
        rows = [self._row(fields, f"{path}, line {n}") for n, fields in records(path)]
        if not rows:
            raise UserError(f"{path}: no rows in it")
        return rows

    def _row(self, fields: dict[str, Any], where: str) -> Row:
        if isinstance(self.text_field, str):
            inputs = _text(fields, self.text_field, where)
        else:
            inputs = " ".join(f"{name}: {_text(fields, name, where)}" for name in self.text_field)
        if not self.label_field:
            return Row(inputs, "")
        if self.labels:
            return Row(inputs, self._label(field(fields, self.label_field, where), where))
        if isinstance(field(fields, self.label_field, where), int):
            raise UserError(
                f"{where}: {self.label_field!r} is a number, not the target text; "
                "set CLASS_LABELS to the words that the numbers stand for"
            )
        return Row(inputs, _text(fields, self.label_field, where))

    def _label(self, value: Any, where: str) -> str:
        if isinstance(value, str) and value in self.labels:
            return value
        # Columns hold indices as digits.
        index = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
        if type(index) is int and 0 <= index < len(self.labels):
            return self.labels[index]
        raise UserError(
            f"{where}: {self.label_field!r} is {value!r}, not one of CLASS_LABELS "
            f"({', '.join(self.labels)}) nor an index from 0 to {len(self.labels) - 1}"
        )


def field(fields: dict[str, Any], name: str, where: str) -> Any:
    if name not in fields:
        raise UserError(f"{where}: no field {name!r}; there are: {', '.join(sorted(fields))}")
    return fields[name]


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = field(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} is {json.dumps(value)[:60]}, not a string")
    if not value.strip():
        raise UserError(f"{where}: {name!r} is empty")
    return value


def records(path: Path) -> Records:
    plain = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    if plain.suffix not in _PARSERS:
        formats = ", ".join(_PARSERS)
        raise UserError(f"{path}: unknown format; must end in {formats}, or these with .gz or .xz")
    return _PARSERS[plain.suffix](path, _lines(path))


def _lines(path: Path) -> Lines:
    try:
        with cast(TextIO, open_text(path)) as file:
            # Decoded line by line: the text layer decodes in blocks, and could not tell the line.
            for number, line in enumerate(file.buffer, 1):
                # Spreadsheet programs put a byte order mark in front.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}, line {number}: not UTF-8 text") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _json_records(path: Path, lines: Lines) -> Records:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(fields, dict):
            raise UserError(f"{path}, line {number}: not a JSON object but {line.strip()[:60]}")
        yield number, fields


def _csv_records(path: Path, lines: Lines, delimiter: str = ",") -> Records:
    header: list[str] | None = None
    for number, cells in _csv_cells(path, (line for _, line in lines), delimiter):
        if header is None:
            header = cells
            if len(set(header)) != len(header):
                raise UserError(f"{path}, line {number}: two columns of one name in the header")
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        else:
            raise UserError(
                f"{path}, line {number}: {len(cells)} columns, but {len(header)} in the header"
            )


def _tsv_records(path: Path, lines: Lines) -> Records:
    return _csv_records(path, lines, "\t")


def _csv_cells(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # Strict: a stray quote is an error, where it would swallow the rows up to the next one.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {start}: malformed row ({error})") from None
        if cells:
            yield start, cells


_PARSERS: dict[str, Callable[[Path, Lines], Records]] = {
    ".jsonl": _json_records,
    ".csv": _csv_records,
    ".tsv": _tsv_records,
}
