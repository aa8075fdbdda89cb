"""One frozen backbone, prompts of many tasks: batches whose rows are of different tasks."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

from prompt_tuning.errors import UserError
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.t5.network import T5
from prompt_tuning.t5.paths import Params


@dataclasses.dataclass(frozen=True, eq=False)
class _Served:
    """What one call sees from its beginning to its end, whatever is added meanwhile."""

    bank: PromptBank
    model: T5
    params: Params
    labels: Mapping[str, tuple[str, ...]]

    def check(self, task: str) -> None:
        if task not in self.labels:
            close = difflib.get_close_matches(task, self.labels) or sorted(self.labels)[:10]
            there_are = f"there are: {', '.join(close)}" if close else "add one by add_task"
            raise UserError(f"no task {task!r}; {there_are}")


def _words(task: str, labels: Sequence[str]) -> tuple[str, ...]:
    several = isinstance(labels, Sequence) and not isinstance(labels, str)
    words = {word for word in labels if isinstance(word, str) and word.strip()} if several else None
    if words is None or len(words) != len(labels):
        raise UserError(f"task {task!r}: labels = {labels!r} is no list of different words")
    return tuple(labels)
