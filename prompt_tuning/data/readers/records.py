"""Reads rows of JSON-lines, CSV and TSV files; a malformed row is an error, or is skipped."""

import collections
import csv
import dataclasses
import functools
import json
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar, cast

from prompt_tuning.data.readers import saved_datasets
from prompt_tuning.data.readers.compressed import open_text
from prompt_tuning.data.unicode_form import composed, shown_beside
from prompt_tuning.errors import UserError, whole_number

LONGEST = 2**20  # bytes of a line, characters of a cell; far beyond what a T5 can use

_JSON_LINES = (".jsonl", ".json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_DELIMITER_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_BREAK = "a line break inside a cell"
_RETURN = "lines end in a carriage return alone; save the file with line feeds"
_IN_QUOTES = re.compile(r'\s*".*"\s*')
_LOOKS_QUOTED = re.compile(r'"([^"]|"")*""([^"]|"")*"')

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Bad:
    """The reason why a row or line cannot be read."""

    reason: str


Lines = Iterator[tuple[int, str | Bad]]  # numbered from 1
Row = tuple[int, list[str] | Bad]  # number of the first line, cells
Records = Iterator[tuple[str, dict[str, Any] | Bad]]  # place such as "line 3", fields by name


class BadRows:
    """Counts the malformed rows that a run skips, at most `most` over all its files.

    A row counts once, even if its file is read several times.
    """

    def __init__(self, most: int = 0) -> None:
        whole_number("SKIP_BAD_ROWS", most, 0)
        self._most = most
        self._skipped: dict[tuple[Path, str], None] = {}

    def skip(self, path: Path, place: str, error: UserError) -> None:
        """Counts a row as skipped.

        Raises:
          UserError: `error`, if `most` rows were skipped before.
        """
        if (path, place) not in self._skipped:
            if len(self._skipped) == self._most:
                raise UserError(f"{error}{self._skipped_before()}") from None
            self._skipped[path, place] = None

    def summary(self) -> str:
        """A line with the number of rows skipped per file; "" if `most` is 0."""
        if not self._most:
            return ""
        files = collections.Counter(path for path, _ in self._skipped)
        named = ", ".join(f"{path} {count}" for path, count in files.items())
        return f"bad rows skipped: {len(self._skipped)}{f' ({named})' if named else ''}"

    def _skipped_before(self) -> str:
        skipped = len(self._skipped)
        return f" (skipped before it: {skipped}, as --skip_bad_rows allows)" if skipped else ""


def read(
    path: Path,
    row: Callable[[dict[str, Any], str], T],
    bad_rows: BadRows,
    quoted_cells: bool | None = None,
    columns: Sequence[str] = (),
    ending: str = "",
) -> list[T]:
    """Reads all rows of a file or saved data set, in order.

    Args:
      path: File, or folder of a saved data set.
      row: Makes a row from its fields and the name to use for it in errors.
      bad_rows: Counter of the malformed rows that are skipped.
      quoted_cells: Whether cells of a table may be quoted; None for CSV alone.
      columns: Names of the columns of a table that has no header.
      ending: Ending of the format, where the file's own does not say it.

    Raises:
      UserError: For a row that is malformed or that `row` refuses, unless `bad_rows` skips it; the
        message names file and line. Also if the file cannot be read or has no good row.
    """
    rows = list(stream(path, row, bad_rows, quoted_cells, columns, ending))
    if not rows:
        raise UserError(f"{path}: no rows; {bad_rows.summary()}".removesuffix("; "))
    return rows


def stream(
    path: Path,
    row: Callable[[dict[str, Any], str], T],
    bad_rows: BadRows,
    quoted_cells: bool | None = None,
    columns: Sequence[str] = (),
    ending: str = "",
) -> Iterator[T]:
    """Yields what `read` returns, for files that do not fit in memory or may be empty."""
    for place, fields in _records(path, quoted_cells, columns, ending):
        where = f"{path}, {place}"
        try:
            if isinstance(fields, Bad):
                raise UserError(f"{where}: {fields.reason}")
            result = row(fields, where)
        except UserError as error:
            bad_rows.skip(path, place, error)
        else:
            yield result


def field(fields: dict[str, Any], name: str, where: str) -> Any:
    """The value of a field, by its name in any Unicode form; raises UserError if it is missing."""
    if name in fields:
        return fields[name]
    for key in fields:
        if composed(key) == composed(name):
            return fields[key]
    raise UserError(
        f"{where}: no field {shown_beside(name, fields)}; available: "
        f"{shortened(', '.join(sorted(fields)))}"
    )


def check_text(value: str, name: str, where: str) -> str:
    """Returns `value`; raises UserError if it contains NUL or half a surrogate pair."""
    if "\0" in value:
        raise UserError(f"{where}: {name!r} contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {name!r} contains half a surrogate pair") from None
    if "\ufffd" in value:
        warnings.warn(
            f"texts of {name!r} contain U+FFFD, which replaces what was decoded wrongly, and the "
            "vocabulary drops it; save the file as UTF-8 from its source",
            stacklevel=1,  # one place, so that a column is named once
        )
    return value


def shown(value: Any) -> str:
    """A value as errors show it, shortened to a line."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _records(path: Path, quoted_cells: bool | None, columns: Sequence[str], ending: str) -> Records:
    if path.is_dir():
        return ((f"row {n}", fields) for n, fields in saved_datasets.rows(path))
    plain = path.with_suffix("") if path.suffix.lower() in (".gz", ".xz") else path
    ending = ending or plain.suffix.lower()
    if ending not in (*_JSON_LINES, *_DELIMITERS):
        formats = ", ".join((*_JSON_LINES, *_DELIMITERS))
        raise UserError(
            f"{path}: unknown format; must end in {formats}, or these with .gz or .xz, or be a "
            "folder of Dataset.save_to_disk"
        )
    if ending in _JSON_LINES:
        return _json_records(_lines(path))
    return _table_records(path, _lines(path), _DELIMITERS[ending], quoted_cells, columns)


def _lines(path: Path) -> Lines:
    number = 0
    try:
        with cast(TextIO, open_text(path)) as file:
            # Decoded line by line, since the text layer decodes in blocks and cannot name the line.
            for number, line in enumerate(_decoded(file.buffer), 1):
                yield number, line
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        after = f" after line {number}" if number else ""
        raise UserError(f"{path}: cannot be read{after} ({error})") from error


def _decoded(file: IO[bytes]) -> Iterator[str | Bad]:
    encoding = "utf-8-sig"  # spreadsheet programs write a byte order mark
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST)
            yield Bad(f"a line of more than {LONGEST} bytes")
        elif b"\0" in line:
            yield Bad("not UTF-8 text: contains a NUL character")
        else:
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError:
                yield Bad("not UTF-8 text")
        encoding = "utf-8"


def _json_records(lines: Lines) -> Records:
    for number, line in lines:
        if isinstance(line, Bad) or line.strip():
            yield f"line {number}", line if isinstance(line, Bad) else _json_object(line)


class _TwiceError(Exception):
    """An object has two fields of the same name, of which JSON keeps the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = collections.Counter(composed(name) for name, _ in pairs)
    if len(counts) < len(pairs):
        raise _TwiceError(shown(max(counts, key=counts.__getitem__)))
    return dict(pairs)


def _json_object(line: str) -> dict[str, Any] | Bad:
    try:
        fields = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        hint = "; write each row as an object on a line of its own" if line[:1] in "[{" else ""
        return Bad(f"not JSON ({error.msg}){hint}")
    except _TwiceError as error:
        return Bad(f"two fields with the same name {error}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep brackets
        return Bad(f"JSON that cannot be read ({error})")
    if not isinstance(fields, dict):
        return Bad(f"expected a JSON object, got {line.strip()[:60]}")
    return fields


def _table_records(
    path: Path,
    lines: Lines,
    delimiter: str,
    quoted_cells: bool | None,
    columns: Sequence[str],
) -> Records:
    header = list(columns) or None
    quoted = delimiter == "," if quoted_cells is None else quoted_cells
    is_unsure = not quoted and quoted_cells is None
    rows = _quoted_cells(lines, delimiter) if quoted else _plain_cells(lines, delimiter)
    all_quoted: set[str] = set()  # columns whose cells so far all begin and end with a quote
    count, told = 0, False
    for number, cells in _to_last_value(rows):
        place = f"line {number}"
        if header is None:
            cells = cells if isinstance(cells, Bad) else _header(cells, delimiter)
            if isinstance(cells, Bad):  # no row can be read without it
                raise UserError(f"{path}, {place}: {cells.reason}")
            header = cells
        elif isinstance(cells, Bad):
            yield place, cells
        else:
            if is_unsure and any(map(_LOOKS_QUOTED.fullmatch, cells)):
                is_unsure, told = False, True
                warnings.warn(
                    f"{path}, {place}: a cell seems to be quoted, but quotes are read as text; set "
                    "QUOTED_CELLS = True if cells are quoted",
                    stacklevel=2,
                )
            fields = _named(header, cells)
            if not quoted and isinstance(fields, dict):
                count += 1
                in_quotes = {name for name, cell in fields.items() if _IN_QUOTES.fullmatch(cell)}
                all_quoted = in_quotes & all_quoted if count > 1 else in_quotes
            hint = "" if quoted else "; quotes are text here, see QUOTED_CELLS"
            hint = hint if any('"' in cell for cell in cells) else ""
            if len(header) > 1 and [composed(cell.strip()) for cell in cells] == header:
                fields = Bad("is the header again, as where tables are joined; delete the line")
            yield place, Bad(fields.reason + hint) if isinstance(fields, Bad) else fields
    if all_quoted and count > 1 and not told:
        warnings.warn(
            f"{path}: all {count} cells of {min(all_quoted)!r} begin and end with a quote, which "
            "is read as text; write the cells without quotes (for files of your own, or set "
            "QUOTED_CELLS = True)",
            stacklevel=2,
        )


def _to_last_value(rows: Iterator[Row]) -> Iterator[Row]:
    """Leaves out the rows of empty cells in which the tables of spreadsheets end."""
    empty: list[Row] = []
    for number, cells in rows:
        if isinstance(cells, list) and len(cells) > 1 and not any(map(str.strip, cells)):
            empty.append((number, cells))
        else:
            yield from empty
            yield number, cells
            empty.clear()


def _header(cells: Sequence[str], delimiter: str) -> list[str] | Bad:
    """The names of a table's columns, without spaces around them."""
    header = [composed(cell.strip()) for cell in cells]
    named = [name for name in header if name]
    if len(set(named)) != len(named):
        return Bad("two columns with the same name in the header")
    for other, name in _DELIMITER_NAMES.items():
        if len(named) == 1 and other in named[0] and other != delimiter:
            return Bad(
                f"the header {shown(named[0])} is one column; cells of this format are separated "
                f"by {_DELIMITER_NAMES[delimiter]}, not {name}: convert the file"
            )
    return header


def _named(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any] | Bad:
    """The cells by the names of their columns.

    The first column may lack a name, as that of an index does in tables of pandas; any other
    without a name must be empty.
    """
    if len(cells) > len(header) or any(header[len(cells) :]):
        return Bad(f"{len(cells)} columns, but {len(header)} in the header")
    columns = list(zip(header, cells, strict=False))
    for number, (name, cell) in enumerate(columns[1:], 2):
        if not name and cell.strip():
            return Bad(f"column {number} contains {shown(cell)}, but has no name in the header")
    return {name: cell for name, cell in columns if name}


def _plain_cells(lines: Lines, delimiter: str) -> Iterator[Row]:
    """Yields the number and the cells of each row, a line whose quotes are text."""
    for number, line in lines:
        if isinstance(line, Bad):
            yield number, line
        elif text := line.removesuffix("\n").removesuffix("\r"):
            yield number, Bad(_BREAK) if "\r" in text else text.split(delimiter)


def _quoted_cells(lines: Lines, delimiter: str) -> Iterator[Row]:
    """Yields the number of each row's first line, and its cells.

    After a malformed row, reading resumes at the next line: a quote that is never closed swallows
    all lines that follow, which are rows of their own.
    """
    csv.field_size_limit(LONGEST)
    # Strict, since a stray quote would otherwise swallow the rows up to the next one.
    read_cells = functools.partial(
        csv.reader, delimiter=delimiter, strict=True, skipinitialspace=True
    )
    pending: collections.deque[tuple[int, str | Bad]] = collections.deque()
    taken: list[tuple[int, str | Bad]] = []  # lines of the current row

    def texts() -> Iterator[str]:
        while line := pending.popleft() if pending else next(lines, None):
            taken.append(line)
            if isinstance(line[1], Bad):
                raise csv.Error(line[1].reason)
            yield line[1]

    reader = read_cells(texts())
    while True:
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            (number, first), *rest = taken
            reason = _RETURN if "new-line" in str(error) else f"malformed row ({error})"
            yield number, first if isinstance(first, Bad) else Bad(reason)
            pending.extendleft(reversed(rest))
            reader = read_cells(texts())
        else:
            broken = delimiter == "\t" and any("\n" in cell or "\r" in cell for cell in cells)
            if cells:
                yield taken[0][0], Bad(_BREAK) if broken else cells
