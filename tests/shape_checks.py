"""The type checker that holds arrays to the shapes in the core's annotations, in tests alone."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as in PEP 484


def typechecker(function: Callable) -> Callable:
    """Checks calls of a function; constructors check their own settings, with messages of ours."""
    return function if function.__name__ == "__init__" else _checked(function)
