"""A SeqIO source of examples in memory."""

import abc
import hashlib
import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.errors import UserError

# Of the examples of each source, by split; no attribute, since the token cache describes those.
_DIGESTS: MutableMapping[seqio.DataSource, dict[str, str]] = weakref.WeakKeyDictionary()


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
        return len(self._dataset(split))

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
        """Dataset of a split's examples, reshuffled in each epoch if `shuffle`.

        Raises:
          UserError: If the examples are others than when the split was read before.
        """
        dataset = self._dataset(split)
        return dataset.shuffle(max(1, len(dataset)), seed=seed) if shuffle else dataset

    def _dataset(self, split: str) -> tf.data.Dataset:
        columns, digest = self.columns(split), hashlib.sha256()
        for tensor in tf.nest.flatten(columns, expand_composites=True):
            digest.update(tf.io.serialize_tensor(tensor).numpy())
        digests = _DIGESTS.setdefault(self, {})
        if digests.setdefault(split, digest.hexdigest()) != digest.hexdigest():
            raise UserError(
                f"the split {split!r}: its examples have changed since they were first read, as "
                "those of a file that was edited; open the data again"
            )
        return tf.data.Dataset.from_tensor_slices(columns)
