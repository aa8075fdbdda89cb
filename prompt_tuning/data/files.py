"""A user's own data: files and saved data sets, every row checked before training starts."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data.readers import records, saved_datasets
from prompt_tuning.data.readers.records import BadRows, shown
from prompt_tuning.errors import UserError

# Split to the macro that names its file.
MACROS = {"train": "TRAIN_FILE", "validation": "VALIDATION_FILE", "test": "TEST_FILE"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One example as texts."""

    inputs: str
    targets: str


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """A task of files: `.jsonl`, `.csv` or `.tsv` (with a header), plain, `.gz` or `.xz`; or of
    folders that `Dataset.save_to_disk` of Hugging Face's library has written.

    With `labels` it is classification: a row's label is one of them or its index, and the target
    is the word. Without, it is text to text: the label field holds the target.

    Attributes:
      train, validation, test: path of a split's file; "" where there is none.
      text_field: field of the input text; several are joined T5's way, "a: ... b: ...".
      label_field: field of the label or target; "" for texts without any, to predict on.
      labels: the label words.
      bad_rows: which malformed rows are skipped.

    Raises:
      UserError: if `labels` is not a list of different words.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    text_field: str | Sequence[str] = "text"
    label_field: str = "label"
    labels: Sequence[str] = ()
    bad_rows: BadRows = dataclasses.field(default_factory=BadRows, compare=False)

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
          UserError: naming file and line, for the first row that is not as it must be and that
            `bad_rows` does not skip.
        """
        if split not in self.splits:
            macro = MACROS.get(split)
            hint = f"set {macro}" if macro else f"available: {', '.join(MACROS)}"
            raise UserError(f"no file for the split {split!r}: {hint}")
        path = Path(getattr(self, split)).expanduser()
        if path.is_dir() and self.labels:
            saved_datasets.check_order(path, self.label_field, self.labels)
        return records.read(path, self.row, self.bad_rows)

    def row(self, fields: dict[str, Any], where: str) -> Row:
        """One row of its fields; raises as `rows`. `where` is what to call it in an error."""
        if isinstance(self.text_field, str):
            inputs = _text(fields, self.text_field, where)
        else:
            inputs = " ".join(f"{name}: {_text(fields, name, where)}" for name in self.text_field)
        if not self.label_field:
            return Row(inputs, "")
        if self.labels:
            return Row(inputs, self._label(records.field(fields, self.label_field, where), where))
        if isinstance(records.field(fields, self.label_field, where), int):
            raise UserError(
                f"{where}: {self.label_field!r} is a number, not the target text; "
                "set CLASS_LABELS to the words that the numbers stand for"
            )
        return Row(inputs, _text(fields, self.label_field, where))

    def _label(self, value: Any, where: str) -> str:
        if isinstance(value, str) and value in self.labels:
            return value
        # Columns hold indices as digits.
        digits = isinstance(value, str) and value.strip().isdecimal() and len(value) < 10
        index = int(value) if digits else value
        if type(index) is int and 0 <= index < len(self.labels):
            return self.labels[index]
        raise UserError(
            f"{where}: {self.label_field!r} is {shown(value)}, not one of CLASS_LABELS "
            f"({', '.join(self.labels)}) nor an index from 0 to {len(self.labels) - 1}"
        )


def of_folder(
    name: str,
    data_dir: str,
    text_field: str | Sequence[str] = "text",
    label_field: str = "label",
    labels: Sequence[str] = (),
) -> TextFiles:
    """The files `train`, `validation` and `test` of the folder `data_dir/name`, whatever their
    endings; the other arguments are those of `TextFiles`.

    Raises:
      UserError: if none of them is there, or two for one split.
    """
    folder = Path(data_dir, name).expanduser()
    found = {split: sorted(folder.glob(f"{split}.*")) for split in MACROS}
    if not any(found.values()):
        raise UserError(f"DATA_DIR = {data_dir!r}: {folder} has no train.* or test.* file")
    if double := [paths for paths in found.values() if len(paths) > 1]:
        raise UserError(f"{double[0][0]} and {double[0][1].name}: two files of one split")
    first = {split: str(paths[0]) if paths else "" for split, paths in found.items()}
    return TextFiles(
        first["train"], first["validation"], first["test"], text_field, label_field, labels
    )


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = records.field(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} is {json.dumps(value, default=str)[:60]}, not a string")
    if not value.strip():
        raise UserError(f"{where}: {name!r} is empty")
    return records.check_text(value, name, where)
