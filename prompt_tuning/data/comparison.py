"""Compares outputs with targets as the vocabulary writes them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prompt_tuning.data.catalogue.postprocess import Grouped, group_of
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.records import shortened
from prompt_tuning.data.tasks import decode, words_of
from prompt_tuning.data.unicode_form import shown_beside
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import MetricFn


class Comparison:
    """Metrics of a task's texts, with targets as the vocabulary writes them.

    No output can equal a target that the vocabulary writes differently ("CO\u2082" as "CO2", a line
    break as a space), so an output that is a target's writing counts as the target.

    Args:
      task: A SeqIO task.
      examples: N examples of one of its splits.
      targets: Their N texts.
    """

    def __init__(
        self, task: seqio.Task, examples: Sequence[Mapping[str, Any]], targets: Sequence[str]
    ) -> None:
        self._task, self._examples, self._targets = task, examples, targets
        self._vocabulary = task.output_features["targets"].vocabulary
        self._written: dict[str, str] = {}
        self._words = {self.written(word): word for word in words_of(task)}

    def written(self, text: str) -> str:
        """A text as the vocabulary writes it, without spaces around it."""
        if text not in self._written:
            self._written[text] = decode(self._vocabulary, self._vocabulary.encode(text)).strip()
        return self._written[text]

    def by(self, metric: MetricFn) -> MetricFn:
        """A metric of texts: it applies the task's postprocessor first, if there is one."""

        @functools.wraps(metric)
        def scored(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
            self._check_rows(targets)
            words = [
                self._words.get(
                    text.strip(), target if text.strip() == self.written(target) else text
                )
                for target, text in zip(targets, predictions, strict=True)
            ]
            values = [
                _strings(self.written, value) for value in self._values(targets, is_target=True)
            ]
            known = self._written
            answers = [
                _strings(lambda text: known.get(text, text), value)
                for value in self._values(words, is_target=False)
            ]
            return metric(values, answers)

        return scored

    def _check_rows(self, targets: Sequence[str]) -> None:
        """Checks that targets are those of the examples, if a metric reads more of the examples.

        Raises:
          UserError: If they are others, or in another order.
        """
        if self._task.postprocessor is None or [*targets] == [*self._targets]:
            return
        if len(targets) != len(self._targets) or group_of(self._examples[0]):
            raise UserError(
                f"{self._task.name}: its metrics read further fields of the rows that the set was "
                "made of, and these targets are others or in another order"
            )

    def check_ranked(self, where: str) -> None:
        """Checks that each target is a label word, if there are any; no ranking is right otherwise.

        A task with a postprocessor may write its targets in another way, which it then equates.

        Raises:
          UserError: Naming the first target that is none.
        """
        if not self._words:
            return
        known = list(self._words.values())
        for row, target in enumerate(self._targets):
            if self.written(target) in self._words or self._is_equated(row, target, known):
                continue
            raise UserError(
                f"{where}, row {row + 1}: the target {shown_beside(target, known)} is none of the "
                f"task's label words ({shortened(', '.join(map(repr, known)))}); write it as one, "
                "or register the task without labels"
            )

    def _is_equated(self, row: int, target: str, words: Sequence[str]) -> bool:
        """Whether the task's postprocessor equates the target of a row with one of the words."""
        if self._task.postprocessor is None:
            return False
        value_of = functools.partial(self._task.postprocess_fn, example=self._examples[row])
        return value_of(target, is_target=True) in [value_of(w, is_target=False) for w in words]

    def notes(self, where: str) -> list[str]:
        """A line on the targets that the vocabulary writes differently; none if there are none."""
        changed = [text for text in self._targets if self.written(text) != text.strip()]
        if not changed:
            return []
        targets = {text.strip() for text in self._targets}
        equal = len(targets) - len({self.written(text) for text in targets})
        alike = [f"warning: {where}: the vocabulary cannot tell {equal} targets from another one"]
        return [
            *(alike if equal else ()),
            f"{where}: {len(changed)} of {len(self._targets)} targets are compared as the "
            f"vocabulary writes them, such as {changed[0][:50]!r} as "
            f"{self.written(changed[0])[:50]!r}",
        ]

    def _values(self, texts: Sequence[str], *, is_target: bool) -> Sequence[Any]:
        if self._task.postprocessor is None:
            return texts
        return [
            self._task.postprocess_fn(text, example=example, is_target=is_target)
            for text, example in zip(texts, self._examples, strict=True)
        ]


def _strings(function: Callable[[str], str], value: Any) -> Any:
    """Applies a function to a text, to the texts of a list, or to those of a group's value."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Grouped):
        return value._replace(value=_strings(function, value.value))
    if type(value) in (list, tuple):
        return type(value)(_strings(function, part) for part in value)
    return value
