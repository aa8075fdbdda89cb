"""A SeqIO source of examples in memory."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any

from prompt_tuning.data.quiet import seqio, tf


class MemorySource(seqio.DataSource):
    """A source that shuffles whole epochs; subclasses define `columns`.

    SeqIO's FunctionDataSource leaves shuffling to a buffer after `repeat`, in which the epochs of a
    small task mix.
    """

    def __init__(self, splits: Iterable[str]) -> None:
        super().__init__(splits=tuple(splits), performs_internal_shuffling=True)

    @abc.abstractmethod
    def columns(self, split: str) -> Any:
        """Tensors of a split by feature, with the examples on their first axis."""

    def size(self, split: str) -> int:
        """Number of examples of a split.

        This is not SeqIO's `num_input_examples`, since SeqIO caches the first shuffled epoch of a
        small split whose size it knows, and repeats that order.
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
        """Dataset of a split's examples, reshuffled in each epoch if `shuffle`."""
        dataset = tf.data.Dataset.from_tensor_slices(self.columns(split))
        return dataset.shuffle(max(1, len(dataset)), seed=seed) if shuffle else dataset
