"""Texts of several tasks in one file, each row naming its task."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.readers import records
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.errors import UserError
from prompt_tuning.t5.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """A file to predict on, and the folder of its tasks' prompts.

    Attributes:
      file: as of `TextFiles`.
      prompts: folder, see `bank.files`; its `labels.json` says which tasks have label words.
      vocabulary: of the model.
      text_field: as of `TextFiles`.
      task_field: field of the task's name.
      batch_size: rows of a batch.
      input_length: tokens, with the end token, to which an input is cut.
      target_length: most tokens to generate.
      skip_bad_rows: most malformed rows that are skipped.
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

    def rows(self, tasks: Collection[str]) -> list[tuple[str, str]]:
        """Text and task of each row, in the file's order.

        Args:
          tasks: there are.

        Raises:
          UserError: naming file and line, for the first row that is malformed or of another task.
        """
        texts = TextFiles(text_field=self.text_field, label_field="")

        def row(fields: dict[str, Any], where: str) -> tuple[str, str]:
            task = records.field(fields, self.task_field, where)
            if task not in tasks:
                raise UserError(
                    f"{where}: {self.task_field!r} is {records.shown(task)}, but {self.prompts} "
                    f"has prompts for {records.shortened(', '.join(sorted(tasks)))}"
                )
            return texts.row(fields, where).inputs, task

        return records.read(Path(self.file).expanduser(), row, BadRows(self.skip_bad_rows))
