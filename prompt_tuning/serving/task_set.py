"""The tasks that a model serves at one moment: prompts, label words and parameters."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import label_words
from prompt_tuning.errors import UserError
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import T5
from prompt_tuning.t5.paths import Params, join
from prompt_tuning.t5.vocabulary import Vocabulary

Tasks = str | Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskSet:
    """An immutable snapshot of tasks on one backbone.

    A call takes one and keeps it to its end, so tasks that are added or removed meanwhile do not
    affect it.

    Attributes:
      config: Shape of the backbone.
      backbone: Leaves of the backbone.
      bank: Prompts of all tasks.
      labels: Label words by task; empty for a task that generates text.
    """

    config: T5Config
    backbone: Params
    bank: PromptBank
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def model(self) -> T5:
        """The backbone with the bank's sites; equal for snapshots of the same room."""
        return T5(self.config, self.bank.sites)

    @functools.cached_property
    def params(self) -> Params:
        """Parameters of `model`: the leaves of backbone and bank."""
        return join(self.backbone, self.bank.leaves)

    def add(
        self,
        prompts: Mapping[str, Sequence[np.ndarray]],
        labels: Mapping[str, tuple[str, ...]],
        *,
        replace: bool = False,
    ) -> "TaskSet":
        """A snapshot with more tasks, each with one or more prompts and its label words.

        Args:
          prompts: Arrays [P, D] by task.
          labels: Label words by task.
          replace: Whether to replace tasks that exist.

        Raises:
          UserError: as `PromptBank.add`.
        """
        bank = self.bank
        for task in prompts if replace else ():
            bank = bank.remove(task) if task in bank.slots else bank
        return self._with(bank.add(prompts), {**self.labels, **labels})

    def remove(self, task: str) -> "TaskSet":
        """A snapshot without a task.

        Raises:
          UserError: if there is no such task.
        """
        labels = {name: words for name, words in self.labels.items() if name != task}
        return self._with(self.bank.remove(task), labels)

    def check(self, task: str) -> None:
        """Raises UserError if there is no such task, naming similar ones."""
        if task not in self.labels:
            close = difflib.get_close_matches(task, self.labels) or sorted(self.labels)[:10]
            hint = f"available: {', '.join(close)}" if close else "add one with add_task"
            raise UserError(f"no task {task!r}; {hint}")

    def task_of_each(self, texts: Sequence[str], task: Tasks) -> list[str]:
        """The task of each text, from one name for all or a name for each.

        Raises:
          UserError: if `texts` is not a list of texts, the numbers differ, or a task is unknown.
        """
        if isinstance(texts, str):
            raise UserError("texts is one string: give a list of texts")
        if others := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"texts contains {others[0]!r}: give a list of texts")
        names = [task] * len(texts) if isinstance(task, str) else list(task)
        if len(names) != len(texts):
            raise UserError(f"{len(texts)} texts, but {len(names)} tasks: name one for each text")
        for name in dict.fromkeys(names):
            self.check(name)
        return names

    def _with(self, bank: PromptBank, labels: Mapping[str, tuple[str, ...]]) -> "TaskSet":
        return TaskSet(self.config, self.backbone, bank, labels)


def checked_labels(task: str, labels: Any, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Checks the label words of a task; raises as `data.label_words`."""
    setting = f"task {task!r}: labels"
    words = label_words.checked(labels, setting)
    label_words.check_ids(words, vocabulary.encode, vocabulary.decode, setting)
    return words
