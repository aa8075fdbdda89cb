"""Label words: checks of a list of them, and the word that a value of a file stands for."""

import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prompt_tuning.data.unicode_form import is_blank
from prompt_tuning.errors import UserError, plain_text

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # digits of any script
# Pairs in an order in which the index 1 would say the opposite: always, or in most files.
_TRUTHS = {("true", "false"), ("yes", "no"), ("on", "off")}
_VALUES = {
    ("positive", "negative"),
    ("acceptable", "unacceptable"),
    ("correct", "incorrect"),
    ("good", "bad"),
}
_UNKNOWN = 2  # id of the unknown piece in T5's vocabularies


def checked(words: Any, setting: str) -> tuple[str, ...]:
    """Returns a list of label words as a tuple.

    Args:
      words: A sequence of strings, of any type.
      setting: Name of the list in an error.

    Raises:
      UserError: Unless `words` is a sequence of distinct words.
    """
    try:
        if (
            isinstance(words, str | bytes | Mapping | set | frozenset)
            or getattr(words, "ndim", 1) != 1
        ):
            raise TypeError
        words = list(words)
    except TypeError:
        raise UserError(f"{setting} = {words!r}: must be a list of words") from None
    for word in words:
        if not isinstance(word, str):
            raise UserError(
                f"{setting} = {words!r}: {word!r} is of type {type(word).__name__}; write it as a "
                "string"
            )
        if is_blank(word):
            raise UserError(f"{setting} = {words!r}: {word!a} is empty; write a word")
    normal: dict[str, str] = {}
    for word in map(plain_text, words):
        if other := normal.get(_normal(word)):
            raise UserError(
                f"{setting} = {words!r}: must be distinct words, but {_both(other, word)} are the "
                "same"
            )
        normal[_normal(word)] = word
    return tuple(map(plain_text, words))


def check_ids(
    words: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    setting: str,
) -> None:
    """Checks that a vocabulary can tell label words apart; warns of pieces that it does not know.

    Args:
      words: Label words.
      encode: Function from text to token ids, without an end token.
      decode: Function from token ids to text.
      setting: Name of the list of words in an error.

    Raises:
      UserError: If two words have the same tokens or the same text in the vocabulary, or one has no
        tokens.
    """
    by_text: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for word in words:
        ids = [int(i) for i in encode(word)]
        text = decode(ids).strip()
        if not ids or not text:
            raise UserError(f"{setting}: the vocabulary has no pieces for {word!r}; rename it")
        if other := by_text.get(text):
            raise UserError(
                f"{setting}: {_both(other, word)} both become {text!r} in the vocabulary, so no "
                "model can tell them apart; rename one"
            )
        by_text[text] = word
        if _UNKNOWN in ids:
            unknown[word] = text
    for word, text in unknown.items():
        warnings.warn(
            f"{setting}: {word!r} contains pieces that the vocabulary does not know; it becomes "
            f"{text!r}",
            stacklevel=3,
        )


def word_of(value: Any, words: Sequence[str], *, numbered: bool = False) -> str | None:
    """The label word that the value of a file's field stands for; None if it stands for none.

    A value that is written as a word is that word, in any Unicode form and with spaces around it;
    so is a number that equals only one of the words, and JSON's true if one word is "true" or
    "True". A number that equals several words, as 3.1 does "3.1" and "3.10", is none unless it is
    text. An integer is an index into `words` if none of them is a number, and they are not "true"
    and "false" or the like in the order in which 1 would be false.

    Args:
      value: A string, number or boolean.
      words: Distinct label words.
      numbered: Whether a number is always an index, as in a column of `datasets.ClassLabel`.
    """
    is_integer = type(value) is int
    if numbered and is_integer:
        return words[value] if 0 <= value < len(words) else None
    if isinstance(value, bool):
        spellings = [str(value), str(value).lower()]
    elif isinstance(value, str | int | float):
        spellings = [str(value)]
    else:
        return None
    numbers = [_exact_number(word) for word in words]
    wanted = None if isinstance(value, bool) else _exact_number(str(value))
    if is_one_of_several(value, words):
        return None
    for equal in (str, _normal):
        for word in words:
            if equal(word) in map(equal, spellings):
                return word
    if wanted is None:
        return None
    if any(each is not None for each in numbers):
        return words[numbers.index(wanted)] if numbers.count(wanted) == 1 else None
    if are_other_truths(words):
        return None
    digits = isinstance(value, str) and value.strip().isdecimal() and len(value) < 10
    index = int(value) if is_integer or digits else -1
    return words[index] if 0 <= index < len(words) else None


def is_index(value: Any, words: Sequence[str]) -> bool:
    """Whether `word_of` takes a value for an index into `words`, or would if it were in range."""
    is_number = not isinstance(value, bool) and number(str(value)) is not None
    return is_number and all(number(word) is None for word in words)


def are_other_truths(words: Sequence[str]) -> bool:
    """Whether words are "true" and "false" or the like, so that the index 1 would be "false"."""
    return tuple(word.strip().lower() for word in words) in _TRUTHS


def are_other_values(words: Sequence[str]) -> bool:
    """Whether words are such that most files have 0 for the second one, and 1 for the first."""
    return tuple(word.strip().lower() for word in words) in _VALUES


def is_one_of_several(value: Any, words: Sequence[str]) -> bool:
    """Whether a number, not a text, equals more than one word."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = _exact_number(str(value)) if is_number else None
    return wanted is not None and [_exact_number(word) for word in words].count(wanted) > 1


def number(text: str) -> float | None:
    """The number that a text is, with spaces around it; None if it is not a decimal number."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def _exact_number(text: str) -> float | int | None:
    """As `number`; whole numbers are exact, which floats are not above 2^53."""
    text = text.strip()
    whole = text.removeprefix("+").removeprefix("-").isdecimal() and len(text) < 4000
    return int(text) if whole and number(text) is not None else number(text)


def _normal(word: str) -> str:
    return unicodedata.normalize("NFC", word.strip())


def _both(one: str, other: str) -> str:
    """Two words; with escapes if they could look alike."""
    if unicodedata.normalize("NFKC", one).split() == unicodedata.normalize("NFKC", other).split():
        return f"{one!a} and {other!a}"
    return f"{one!r} and {other!r}"


def with_prefix(prefix: str, target: str) -> str:
    """A target as a model is trained to write it, after a prefix such as a sentinel."""
    return f"{prefix} {target}" if prefix else target


def without_prefix(prefix: str, text: str) -> str:
    """A target or an output without the prefix."""
    return text.strip().removeprefix(prefix).lstrip() if prefix else text
