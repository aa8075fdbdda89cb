"""Examples that are held in memory, as a SeqIO source."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any

from prompt_tuning.data.quiet import seqio, tf


class MemorySource(seqio.DataSource):
    """Examples shuffled whole epochs at a time; a subclass gives a split's `columns`.

    SeqIO's FunctionDataSource leaves shuffling to a buffer behind `repeat`, in which the epochs of
    a small task run into each other.
    """

    def __init__(self, splits: Iterable[str]) -> None:
        super().__init__(splits=tuple(splits), performs_internal_shuffling=True)

    @abc.abstractmethod
    def columns(self, split: str) -> Any:
        """Tensors with the examples on their first axis, by feature."""

    def size(self, split: str) -> int:
        """How many examples a split has.

        Not as SeqIO's `num_input_examples`: of a small split whose size it knows SeqIO keeps the
        first epoch in memory, shuffled, and repeats that order for ever.
        """
        return len(tf.data.Dataset.from_tensor_slices(self.columns(split)))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        """Dataset of a split's examples; a new order in each epoch if shuffled."""
        dataset = tf.data.Dataset.from_tensor_slices(self.columns(split))
        return dataset.shuffle(max(1, len(dataset)), seed=seed) if shuffle else dataset
