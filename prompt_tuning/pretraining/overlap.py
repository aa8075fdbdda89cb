"""Texts held back from pre-training: runs of words that they share with data for evaluation."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from prompt_tuning import embedded
from prompt_tuning.data.readers.compressed import open_text
from prompt_tuning.errors import UserError

RUN = 13  # words; shorter texts count whole, from SHORTEST words on
SHORTEST = 8
SPLITS = ("train", "validation", "test")

_WORD = re.compile(r"[a-z0-9]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers of it never become 0 modulo 2^64


class HeldOut:
    """The runs of `RUN` words of all texts that pre-training must not see.

    Args:
      texts: Texts to hold back. One of `SHORTEST` to `RUN` - 1 words counts as a whole.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._ids: dict[str, np.uint64] = {}
        by_length: dict[int, list[np.ndarray]] = {}
        for text in texts:
            ids = self._numbers(text, learn=True)
            length = min(len(ids), RUN)
            if length >= SHORTEST:
                by_length.setdefault(length, []).append(_runs(ids, length))
        self._runs = {n: np.unique(np.concatenate(runs)) for n, runs in by_length.items()}

    def __contains__(self, text: str) -> bool:
        """Whether `text` shares a run of words with what is held back."""
        ids = self._numbers(text, learn=False)
        if not ids.any():
            return False
        for length, held in self._runs.items():
            if len(ids) >= length:
                runs = _runs(ids, length)
                places = np.minimum(np.searchsorted(held, runs), len(held) - 1)
                if (held[places] == runs).any():
                    return True
        return False

    def _numbers(self, text: str, learn: bool) -> np.ndarray:
        """A random number a word, [n] uint64; without `learn`, unknown words are all 0."""
        words = _WORD.findall(text.lower())
        if learn:
            for word in words:
                if word not in self._ids:
                    self._ids[word] = _mix(len(self._ids) + 1)
        return np.array([self._ids.get(word, _ZERO) for word in words], np.uint64)


_ZERO = np.uint64(0)


def _mix(number: int) -> np.uint64:
    """A number that looks random (SplitMix64), never 0 for those that occur."""
    mask = (1 << 64) - 1
    z = (number * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return np.uint64(z ^ (z >> 31))


def _runs(ids: np.ndarray, length: int) -> np.ndarray:
    """A polynomial hash of each run of `length` ids: [n] uint64 to [n - length + 1]."""
    count = len(ids) - length + 1
    total = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(length):
            total = total * _BASE + ids[i : i + count]
    return total


def evaluation_texts(folder: str, without: Sequence[str] = ()) -> Iterator[str]:
    """Every string of every row of the data sets in `folder`, and of the three demo tasks.

    Args:
      folder: One folder for each data set, with the files of its splits: train, validation and
        test; "" for the demo tasks alone.
      without: Data sets that are no evaluation data: those that pre-training is labelled with.

    Raises:
      UserError: If `folder` holds no data set.
    """
    files = [
        file
        for file in sorted(Path(folder).glob("*/*.jsonl*") if folder else ())
        if file.parent.name not in without
    ]
    if folder and not files:
        raise UserError(
            f"--held_out={folder}: no folder with .jsonl files in it; give the folder that holds "
            "one folder for each data set"
        )
    demo = (Path(embedded.data(t, s)) for t in ("reviews", "questions", "topics") for s in SPLITS)
    for file in (*files, *demo):
        with open_text(file) as lines:
            for line in lines:
                yield from _strings(json.loads(line))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
