"""The tasks that a model serves at one moment: prompts, label words and parameters."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np

from prompt_tuning import families
from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.data import label_words
from prompt_tuning.data.unicode_form import composed, shown_beside
from prompt_tuning.errors import UserError, plain_text
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.network import EncoderDecoder
from prompt_tuning.transformer.paths import Params, join
from prompt_tuning.transformer.vocabulary import Vocabulary

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
      trained_with: What the cards of a task's prompts say, by task; none for a task without cards.
    """

    config: Config
    backbone: Params
    bank: PromptBank
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    trained_with: Mapping[str, TrainedWith] = dataclasses.field(default_factory=dict)

    def model(self, longest: int) -> EncoderDecoder:
        """The backbone with sites for prompts of up to `longest` vectors.

        Equal for snapshots of the same room.
        """
        return families.model(self.config, self.bank.sites_for(longest))

    @functools.cached_property
    def params(self) -> Params:
        """Parameters of `model`: the leaves of backbone and bank."""
        return join(self.backbone, self.bank.leaves)

    def add(
        self,
        prompts: Mapping[str, Sequence[np.ndarray]],
        labels: Mapping[str, tuple[str, ...]],
        trained_with: Mapping[str, TrainedWith] = MappingProxyType({}),
        *,
        replace: bool = False,
    ) -> "TaskSet":
        """A snapshot with more tasks, each with one or more prompts and its label words.

        Args:
          prompts: Arrays [P, D] by task.
          labels: Label words by task.
          trained_with: What the prompts were trained with, by task.
          replace: Whether to replace tasks that exist.

        Raises:
          UserError: as `PromptBank.add`.
        """
        rest = self
        for task in prompts if replace else ():
            rest = rest.remove(task) if task in rest.bank.slots else rest
        return dataclasses.replace(
            rest,
            bank=rest.bank.add(prompts),
            labels={**rest.labels, **labels},
            trained_with={**rest.trained_with, **trained_with},
        )

    def remove(self, task: str) -> "TaskSet":
        """A snapshot without a task.

        Raises:
          UserError: if there is no such task.
        """
        task = self.known(task)
        labels, trained_with = {**self.labels}, {**self.trained_with}
        bank = self.bank.remove(task)
        labels.pop(task, None)
        trained_with.pop(task, None)
        return dataclasses.replace(self, bank=bank, labels=labels, trained_with=trained_with)

    def known(self, task: str) -> str:
        """The name of a task, given in any Unicode form.

        Raises:
          UserError: if there is no such task; the message names similar ones.
        """
        name = composed(task)
        if name not in self.labels:
            close = difflib.get_close_matches(str(name), self.labels) or sorted(self.labels)[:10]
            hint = f"available: {', '.join(close)}" if close else "add one with add_task"
            raise UserError(f"no task {shown_beside(task, self.labels)}; {hint}")
        return name

    def task_of_each(self, texts: Sequence[str], task: Tasks) -> list[str]:
        """The task of each text, from one name for all or a name for each.

        Raises:
          UserError: if the numbers differ, or a task is unknown.
        """
        names = [task] * len(texts) if isinstance(task, str) else checked_texts(task, "task")
        if len(names) != len(texts):
            raise UserError(f"{len(texts)} texts, but {len(names)} tasks: name one for each text")
        known = {name: self.known(name) for name in dict.fromkeys(names)}
        return [known[name] for name in names]

    def prefix(self, task: str) -> str:
        """Text before every target of a task, such as a sentinel; "" for none."""
        return self.trained_with[task].target_prefix if task in self.trained_with else ""

    def input_length(self, task: str, without_card: int) -> int:
        """Number of tokens to which the inputs of a task are cut."""
        return self.lengths(task).get("inputs", without_card)

    def output_length(self, task: str, without_card: int) -> int:
        """Number of tokens that a task's generated texts may have, unless a call says."""
        return self.lengths(task).get("targets", without_card)

    def lengths(self, task: str) -> Mapping[str, int]:
        """Lengths with which a task's prompts were trained; empty if no card says them."""
        return self.trained_with.get(task, TrainedWith()).lengths


def checked_texts(texts: Any, name: str = "texts") -> list[str]:
    """The strings of any sequence, such as a `pandas.Series`, by position.

    Raises:
      UserError: if `texts` is not a sequence of strings.
    """
    if isinstance(texts, str):
        raise UserError(f"{name} is one string: give a list of texts")
    try:
        if isinstance(texts, bytes | Mapping | Set) or getattr(texts, "ndim", 1) != 1:
            raise TypeError
        values = list(texts)
    except TypeError:
        raise UserError(f"{name} is of type {type(texts).__name__}: give a list of texts") from None
    for i, text in enumerate(values):
        if not isinstance(text, str):
            shown = " ".join(repr(text).split())[:60]
            raise UserError(
                f"{name}[{i}] is {shown}, of type {type(text).__name__}: give a list of texts"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}[{i}] contains half a surrogate pair") from None
    return [plain_text(text) for text in values]


def checked_labels(task: str, labels: Any, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Checks the label words of a task; raises as `data.label_words`."""
    setting = f"task {task!r}: labels"
    words = label_words.checked(labels, setting)
    label_words.check_ids(words, vocabulary.encode, vocabulary.decode, setting)
    return words
