"""Errors that a user can act on; the command line prints their one line and exits with status 2."""

import numbers
import sys
from typing import Any

MOST = 2**31 - 1  # of 32 bits
MOST_TOKENS = 2**16  # of a text; its arrays would not fit in memory long before


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, written or used."""


class UserError(ValueError):
    """A mistake in what the user gave."""


def whole_number(name: str, value: Any, least: int, most: int = MOST) -> int:
    """Returns a setting, which may be NumPy's, as an int.

    Raises:
      UserError: unless it is a whole number from `least` to `most`.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and least <= value <= most):
        raise UserError(f"{name} = {value!r}: must be a whole number from {least} to {most}")
    return int(value)


def plain_text(text: str) -> str:
    """A string itself; `str()` of a member of an enumeration of strings is its name."""
    return str.__str__(text)


def real_number(name: str, value: Any) -> float:
    """Returns a setting, which may be NumPy's, as a float.

    Raises:
      UserError: unless it is a finite number.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (real and abs(value) <= sys.float_info.max):
        raise UserError(f"{name} = {value!r}: must be a finite number")
    return float(value)


def true_or_false(name: str, value: Any) -> bool:
    """Returns a setting, which may be NumPy's, as a bool; a text such as "no" would count as true.

    Raises:
      UserError: unless it is True or False.
    """
    if type(value).__name__ not in ("bool", "bool_"):  # the latter is NumPy's
        raise UserError(f"{name} = {value!r}: must be True or False")
    return bool(value)
