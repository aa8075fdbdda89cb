"""Names in one Unicode form, and values that look like names but are others.

Names of tasks and columns are composed (NFC) where they come in: a file name of macOS and a word
from a keyboard are then equal. Texts are left alone, since a vocabulary normalises them itself.
"""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any


def composed(name: Any) -> Any:
    """A string in the form NFC, in which an accent is part of its letter; others as they are."""
    return unicodedata.normalize("NFC", name) if isinstance(name, str) else name


def is_blank(text: str) -> bool:
    """Whether a text has nothing to see: spaces, zero-width characters, marks without a letter.

    Nor have the two signs that vocabularies read as spaces: U+FFFD and U+2581.
    """
    invisible = ("Cc", "Cf", "Mn", "Zl", "Zp", "Zs")
    return all(unicodedata.category(c) in invisible or c in "\ufffd\u2581" for c in text)


def shown_beside(value: Any, known: Iterable[Any]) -> str:
    """A value as an error shows it; with escapes if it could look like one of `known`."""
    if not isinstance(value, str):
        return repr(value)
    folded = {_folded(word): word for word in known if isinstance(word, str)}
    alike = difflib.get_close_matches(_folded(value), folded, n=1)
    same = alike == [_folded(value)]
    return ascii(value) if alike and (same or folded[alike[0]].isascii()) else repr(value)


def _folded(text: str) -> str:
    """What the eye sees of a text: no marks, no forms of compatibility, no spaces around it."""
    letters = unicodedata.normalize("NFKD", text.strip())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
