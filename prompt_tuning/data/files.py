"""Reads a user's own files and saved data sets; checks every row before training starts."""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data import label_words, metrics
from prompt_tuning.data.readers import records, saved_datasets
from prompt_tuning.data.readers.records import BadRows, shortened, shown
from prompt_tuning.data.unicode_form import composed, is_blank, shown_beside
from prompt_tuning.errors import UserError, plain_text, true_or_false

# The macro that names the file of each split.
MACROS = {"train": "TRAIN_FILE", "validation": "VALIDATION_FILE", "test": "TEST_FILE"}

TEXT_NAME = "inputs_pretokenized"  # T5X's name of the text in a line of predictions
_NOT_INDICES = "if they start at 1 or mean something else, write the words in the file"


@dataclasses.dataclass(frozen=True)
class Row:
    """An example as texts.

    Attributes:
      inputs, targets: Texts.
      columns: Further columns, which predictions pass on.
      by_number: Whether the file gives the label as a number, which an order of the words explains.
    """

    inputs: str
    targets: str
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    by_number: bool = dataclasses.field(default=False, compare=False)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """A task read from files, one per split.

    A file is `.jsonl` or `.json` (lines of JSON), `.csv` or `.tsv` (with a header), plain, `.gz` or
    `.xz`; or a folder written by `Dataset.save_to_disk` of Hugging Face's `datasets`.

    With `labels` the task is classification: a row's label is one of the words or its index (see
    `label_words.word_of`), and the target is the word. Without, it is text to text: the label field
    contains the target.

    Attributes:
      train, validation, test: Path of the split's file; "" for none.
      text_field: Field of the input text; several are joined as T5 does, "a: ... b: ...".
      label_field: Field of the label or target; "" for texts without targets, to predict on.
      labels: Label words; empty for text to text.
      quoted_cells: Whether cells of CSV and TSV may be quoted; None for CSV alone.
      bad_rows: Counter of the malformed rows that are skipped.
      metrics: Names of metrics, see `data.metrics`; the first one chooses the best step.
      keep_columns: Whether rows keep their columns besides the text, to be passed on.

    Raises:
      UserError: If `labels` is not a list of distinct words, a metric does not fit them, or a
        field's name is no name.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    text_field: str | Sequence[str] = "text"
    label_field: str = "label"
    labels: Sequence[str] = ()
    quoted_cells: bool | None = None
    bad_rows: BadRows = dataclasses.field(default_factory=BadRows, compare=False)
    metrics: Sequence[str] = metrics.DEFAULT
    keep_columns: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", label_words.checked(self.labels, "CLASS_LABELS"))
        object.__setattr__(self, "metrics", metrics.checked(self.metrics, self.labels))
        names = (self.text_field,) if isinstance(self.text_field, str) else self.text_field
        is_list = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
        if not (is_list and names and all(names)):
            raise UserError(
                f"TEXT_FIELD = {self.text_field!r}: must be the name of the text's field, or a "
                "list of such names"
            )
        names = tuple(map(plain_text, names))
        text_field = names[0] if isinstance(self.text_field, str) else names
        object.__setattr__(self, "text_field", text_field)
        if len(set(map(composed, names))) < len(names):
            raise UserError(f"TEXT_FIELD = {self.text_field!r}: names a field twice")
        if self.quoted_cells is not None:
            true_or_false("QUOTED_CELLS", self.quoted_cells)
        true_or_false("keep_columns", self.keep_columns)
        if not isinstance(self.label_field, str):
            raise UserError(f"LABEL_FIELD = {self.label_field!r}: must be the name of a field")
        if self.labels and self.label_field in names:
            raise UserError(
                f"LABEL_FIELD = {self.label_field!r}: is in TEXT_FIELD too, so that inputs would "
                "give the label away"
            )

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The field or fields of the input text."""
        return (self.text_field,) if isinstance(self.text_field, str) else tuple(self.text_field)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a file."""
        return tuple(split for split in MACROS if getattr(self, split))

    def rows(self, split: str) -> list[Row]:
        """All rows of "train", "validation" or "test", in the file's order.

        Raises:
          UserError: For the first malformed row that `bad_rows` does not skip; the message names
            file and line.
        """
        if split not in self.splits:
            macro = MACROS.get(split)
            hint = f"set {macro}" if macro else f"available: {', '.join(MACROS)}"
            raise UserError(f"no file for the split {split!r}: {hint}")
        path = Path(getattr(self, split)).expanduser()
        names = saved_datasets.class_names(path, self.label_field) if path.is_dir() else []
        numbered = bool(names)
        if numbered:
            saved_datasets.check_order(path, self.label_field, self.labels)
            self._warn_of_names(path, names)
        indexed: set[str] = set()  # words whose index a row has

        def row(fields: dict[str, Any], where: str) -> Row:
            made = self.row(fields, where, numbered=numbered)
            if self.keep_columns:
                made = dataclasses.replace(made, columns=self.other_columns(fields, where))
            if made.by_number and not numbered:
                indexed.add(made.targets)
            return made

        rows = records.read(path, row, self.bad_rows, self.quoted_cells)
        if indexed and self.labels[0] not in {row.targets for row in rows}:
            self._warn_of_indices(path, min(map(self.labels.index, indexed)))
        elif indexed and label_words.are_other_values(self.labels):
            warnings.warn(
                f"{path}: the numbers in {self.label_field!r} are taken as indices into "
                f"CLASS_LABELS, so 0 is {self.labels[0]!r} and 1 {self.labels[1]!r}; if that is "
                "the wrong way round, give the words in the other order",
                stacklevel=1,  # one place, so that a file that is read twice is named once
            )
        return rows

    def other_columns(self, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The columns of a row besides those of the text, as JSON values.

        Raises:
          UserError: If one has the name that predictions give the text.
        """
        texts = set(map(composed, self.text_fields))
        others = {name: value for name, value in fields.items() if composed(name) not in texts}
        if TEXT_NAME in others:
            raise UserError(
                f"{where}: has a column {TEXT_NAME!r}, the name that predictions give the text of "
                f"{self.text_field!r}; rename the column, or set TEXT_FIELD = {TEXT_NAME!r} if it "
                "is the text"
            )
        # Dates and the like, which saved data sets have, are their text in JSON.
        return json.loads(json.dumps(others, default=str))

    def _warn_of_indices(self, path: Path, lowest: int) -> None:
        """Warns that no row has the index 0: the numbers may start at 1."""
        warnings.warn(
            f"{path}: the numbers in {self.label_field!r} are taken as indices into CLASS_LABELS, "
            f"so {lowest} is {self.labels[lowest]!r}, and no row is {self.labels[0]!r}, 0; "
            f"{_NOT_INDICES}",
            stacklevel=1,  # one place, so that a file that is read twice is named once
        )

    def _warn_of_names(self, path: Path, names: Sequence[str]) -> None:
        """Warns of the classes of a `ClassLabel` that only their place makes label words."""
        pairs = zip(names, self.labels, strict=False)
        others = [pair for pair in pairs if len(set(map(saved_datasets.folded, pair))) > 1]
        if others:
            taken = ", ".join(f"{name!r} is {word!r}" for name, word in others)
            warnings.warn(
                f"{path}: classes of {self.label_field!r} are not in CLASS_LABELS and are taken by "
                f"their place, so {shortened(taken)}",
                stacklevel=1,  # one place, as above
            )

    def row(self, fields: dict[str, Any], where: str, *, numbered: bool = False) -> Row:
        """Makes a row of its fields.

        Args:
          fields: Values by field name.
          where: Name of the row in an error, such as "FILE, line 3".
          numbered: Whether numbers in the label field are always indices into `labels`.

        Raises:
          UserError: If a field is missing or not as it must be.
        """
        if isinstance(self.text_field, str):
            inputs = _text(fields, self.text_field, where)
        else:
            inputs = " ".join(f"{name}: {_text(fields, name, where)}" for name in self.text_field)
        if not self.label_field:
            return Row(inputs, "")
        if self.labels:
            value = records.field(fields, self.label_field, where)
            word = label_words.word_of(value, self.labels, numbered=numbered)
            by_number = label_words.is_index(value, self.labels)
            return Row(inputs, self._known(word, value, where), by_number=by_number)
        value = records.field(fields, self.label_field, where)
        if needing := metrics.of_numbers(self.metrics):
            if isinstance(value, bool) or label_words.number(str(value)) is None:
                raise UserError(
                    f"{where}: {self.label_field!r} is {shown(value)}, not a number, which the "
                    f"metric {needing} needs"
                )
            return Row(inputs, str(value).strip())
        if isinstance(value, int):
            raise UserError(
                f"{where}: {self.label_field!r} is a number, not the target text; "
                "set CLASS_LABELS to the words that the numbers stand for, or METRICS to "
                "correlations"
            )
        return Row(inputs, _text(fields, self.label_field, where))

    def _known(self, word: str | None, value: Any, where: str) -> str:
        if word is not None:
            return word
        numbers = any(label_words.number(label) is not None for label in self.labels)
        numbers = numbers or label_words.are_other_truths(self.labels)
        index = "" if numbers else f" nor an index from 0 to {len(self.labels) - 1}"
        if label_words.is_one_of_several(value, self.labels):
            raise UserError(
                f"{where}: {self.label_field!r} is the number {shown(value)}, which several of "
                f"CLASS_LABELS ({shortened(', '.join(map(repr, self.labels)))}) are; write it as a "
                "string"
            )
        hint = f"; {_NOT_INDICES}" if label_words.is_index(value, self.labels) else ""
        value_shown = shortened(shown_beside(value, self.labels))
        raise UserError(
            f"{where}: {self.label_field!r} is {value_shown}, not one of CLASS_LABELS "
            f"({shortened(', '.join(map(repr, self.labels)))}){index}{hint}"
        )


def of_folder(
    name: str,
    data_dir: str,
    text_field: str | Sequence[str] = "text",
    label_field: str = "label",
    labels: Sequence[str] = (),
    quoted_cells: bool | None = None,
    metrics: Sequence[str] = metrics.DEFAULT,
    keep_columns: bool = False,
) -> TextFiles:
    """A task of the files `train.*`, `validation.*` and `test.*` of the folder `data_dir/name`.

    Args:
      name: Name of the folder.
      data_dir: Folder that contains it.
      text_field, label_field, labels, quoted_cells, metrics, keep_columns: See `TextFiles`.

    Raises:
      UserError: If none of the files exists, or two exist for one split.
    """
    folder = Path(data_dir, name).expanduser()
    candidates = {split: sorted(folder.glob(f"{split}.*")) for split in MACROS}
    if not any(candidates.values()):
        raise UserError(f"DATA_DIR = {data_dir!r}: {folder} has no train.* or test.* file")
    if double := [paths for paths in candidates.values() if len(paths) > 1]:
        raise UserError(f"{double[0][0]} and {double[0][1].name}: two files for one split")
    first = {split: str(paths[0]) if paths else "" for split, paths in candidates.items()}
    paths = first["train"], first["validation"], first["test"]
    return TextFiles(
        *paths,
        text_field,
        label_field,
        labels,
        quoted_cells,
        metrics=metrics,
        keep_columns=keep_columns,
    )


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = records.field(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} is {json.dumps(value, default=str)[:60]}, not a string")
    if is_blank(value):
        seen = f", {value!a} has no visible character" if value.strip() else ""
        raise UserError(f"{where}: {name!r} is empty{seen}")
    return records.check_text(value, name, where)
