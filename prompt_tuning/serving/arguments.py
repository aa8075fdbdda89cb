"""Arguments of a call of `Model` as arrays, one value per text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import label_words
from prompt_tuning.decoding.batches import power
from prompt_tuning.errors import UserError, whole_number
from prompt_tuning.transformer.vocabulary import EOS


def is_sequence(setting: Any) -> bool:
    """Whether a setting is a list, an array, a `pandas.Series` or the like: a value per text."""
    is_one = isinstance(setting, Sequence) and not isinstance(setting, bytes)
    return getattr(setting, "ndim", int(is_one)) == 1


def for_each(name: str, setting: Any, count: int) -> list[Any]:
    """The values of a setting, by position; a single value is repeated `count` times.

    Raises:
      UserError: if it has another number of values.
    """
    values = list(setting) if is_sequence(setting) else [setting] * count
    if len(values) != count:
        raise UserError(f"{count} texts, but {len(values)} values of {name}: give one for each")
    return values


def seeds_and_numbers(seed: int | Sequence[int], count: int) -> np.ndarray:
    """Seed and number [count, 2] uint32 of each text, from which its key is made."""
    pairs = [
        (whole_number("seed", text_seed, 0, 2**32 - 1), 0 if is_sequence(seed) else i)
        for i, text_seed in enumerate(for_each("seed", seed, count))
    ]
    return np.array(pairs, np.uint32).reshape(count, 2)


def label_targets(
    labels: Mapping[str, Sequence[str]],
    prefixes: Mapping[str, str],
    encode: Callable[[str], list[int]],
) -> dict[str, np.ndarray]:
    """Each task's labels as tokens [K, L] int32, of one shape for all tasks; 0 is padding."""
    ids = {
        task: [[*encode(label_words.with_prefix(prefixes[task], word)), EOS] for word in words]
        for task, words in labels.items()
    }
    longest = max((len(word) for words in ids.values() for word in words), default=1)
    shape = power(max(map(len, ids.values()), default=1)), power(longest)
    targets = {task: np.zeros(shape, np.int32) for task in ids}
    for task, words in ids.items():
        for row, word in zip(targets[task], words, strict=False):
            row[: len(word)] = word
    return targets
