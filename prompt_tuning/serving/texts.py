"""Texts as token ids: with what begins and ends an input, and cut to its length."""

import dataclasses
import unicodedata
import warnings
from collections.abc import Sequence

from prompt_tuning.transformer.vocabulary import EOS, Vocabulary, begin_of, unknown_of

CUT = (
    "texts of more tokens than the input length are cut; it is that of the training if the "
    "prompt's card says so, else the model's input_length"
)
EMPTY = "some texts are empty, so their answers say nothing of them"
UNREADABLE = (
    "the vocabulary does not know most characters of some texts, so the model cannot tell them "
    "apart; use a backbone of the texts' language"
)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An input as the model reads it.

    Attributes:
      ids: What begins inputs, then the text, cut to the length, and the end token.
      whole: Number of ids before it was cut.
      unknown: Number of `ids` that are the unknown piece.
      is_readable: Whether the vocabulary knows at least half of the text's characters.
      is_empty: Whether the text has no characters but spaces.
    """

    ids: list[int]
    whole: int
    unknown: int
    is_readable: bool
    is_empty: bool

    @property
    def is_cut(self) -> bool:
        return self.whole > len(self.ids)


def encoded(vocabulary: Vocabulary, text: str, length: int) -> Encoded:
    """The input that a text is, of at most `length` ids; whatever answers a text calls this."""
    unknown, pieces = unknown_of(vocabulary), vocabulary.encode(text)
    ids = [*begin_of(vocabulary), *pieces]
    cut = [*ids[: length - 1], EOS]
    is_readable = True
    # An unknown piece stands for all characters of a word; others are dropped, such as U+FFFD.
    if unknown in pieces or not text.isascii():
        known = vocabulary.decode([i for i in pieces if i != unknown])
        is_readable = 2 * _characters(known) >= _characters(unicodedata.normalize("NFKC", text))
    return Encoded(cut, len(ids) + 1, cut.count(unknown), is_readable, not text.strip())


def warn(texts: Sequence[Encoded]) -> None:
    """Warns, once in a process, of texts that are cut, are empty or cannot be read."""
    if any(text.is_cut for text in texts):
        warnings.warn(CUT, stacklevel=1)
    if any(text.is_empty for text in texts):
        warnings.warn(EMPTY, stacklevel=1)
    if not all(text.is_readable for text in texts):
        warnings.warn(UNREADABLE, stacklevel=1)


def _characters(text: str) -> int:
    return len("".join(text.split()))
