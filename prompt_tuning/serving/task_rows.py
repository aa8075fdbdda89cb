"""Texts of several tasks in one file; each row names its task."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.readers import records
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.unicode_form import composed, shown_beside
from prompt_tuning.decoding import RANK_MEMORY_GIB
from prompt_tuning.errors import MOST_TOKENS, UserError, whole_number
from prompt_tuning.transformer.vocabulary import Vocabulary


class TaskRow(NamedTuple):
    """A text, the name of its task, and the other columns of its row."""

    text: str
    task: str
    columns: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """A file to predict on, and the folder with the prompts of its tasks.

    Attributes:
      file: Path of a file that `TextFiles` reads.
      prompts: Folder of prompts, see `prompt_folder.files`; its `labels.json` has the label words.
      vocabulary: Vocabulary of the model.
      text_field: Field or fields of the text, as in `TextFiles`.
      task_field: Field of the task's name.
      batch_size: Most rows of a batch.
      input_length: Number of tokens, including the end token, to which an input is cut.
      target_length: Maximum number of tokens to generate.
      skip_bad_rows: Maximum number of malformed rows to skip.
      quoted_cells: Whether cells of CSV and TSV may be quoted; None for CSV alone.
      rank_memory_gib: Memory in which labels are scored together, see `serving.load`.

    Raises:
      UserError: If a length is out of its range.
    """

    file: str
    prompts: str
    vocabulary: Vocabulary
    text_field: str | Sequence[str] = "text"
    task_field: str = "task"
    batch_size: int = 64
    input_length: int = 128
    target_length: int = 16
    skip_bad_rows: int = 0
    quoted_cells: bool | None = None
    rank_memory_gib: float = RANK_MEMORY_GIB

    def __post_init__(self) -> None:
        whole_number("INPUT_LENGTH", self.input_length, 1, MOST_TOKENS)
        whole_number("TARGET_LENGTH", self.target_length, 1, MOST_TOKENS)

    @functools.cached_property
    def bad_rows(self) -> BadRows:
        """Counter of the malformed rows that are skipped."""
        return BadRows(self.skip_bad_rows)

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The field or fields of the text."""
        return self._texts.text_fields

    @property
    def _texts(self) -> TextFiles:
        return TextFiles(text_field=self.text_field, label_field="")

    def rows(self, tasks: Collection[str]) -> list["TaskRow"]:
        """Reads the rows, in the file's order.

        Args:
          tasks: Tasks that have prompts.

        Raises:
          UserError: for the first row that is malformed or of an unknown task; the message names
            file and line.
        """
        texts = self._texts

        def row(fields: dict[str, Any], where: str) -> TaskRow:
            task = composed(records.field(fields, self.task_field, where))
            if task not in tasks:
                if not isinstance(task, str) and str(task) in tasks:
                    raise UserError(
                        f"{where}: {self.task_field!r} is {task!r}, which is no string; write "
                        f'"{task}"'
                    )
                raise UserError(
                    f"{where}: {self.task_field!r} is {shown_beside(task, tasks)}, but "
                    f"{self.prompts} has prompts for {records.shortened(', '.join(sorted(tasks)))}"
                )
            columns = texts.other_columns(fields, where)
            columns = {k: v for k, v in columns.items() if composed(k) != composed(self.task_field)}
            return TaskRow(texts.row(fields, where).inputs, task, columns)

        path = Path(self.file).expanduser()
        return records.read(path, row, self.bad_rows, self.quoted_cells)
