"""The interface of a task's data; `prompt_tuning.data.batches.TaskData` implements it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.training.loop import HostBatch


class Data(Protocol):
    """A task or mixture; see `prompt_tuning.data.batches.TaskData`."""

    task: str
    batch_size: int
    lengths: Mapping[str, int]
    target_prefix: str

    def as_trained(self, lengths: Mapping[str, int], target_prefix: str) -> "Data": ...

    @property
    def splits(self) -> Sequence[str]: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def text_fields(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def bare_inputs(self) -> tuple[str, ...]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def labels_by_number(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def vocabulary_fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...

    def train_batches(
        self, start: int, positions: int | None, multiple: int
    ) -> Iterator[HostBatch]: ...

    def eval_set(self, split: str) -> EvalSet: ...

    def eval_sets(self, split: str) -> Sequence[EvalSet]: ...

    def train_notes(self) -> Sequence[str]: ...

    def remarks(self) -> Sequence[str]: ...
