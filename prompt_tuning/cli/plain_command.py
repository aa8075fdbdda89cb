"""What the commands without gin share: a mistake is one line on stderr, and status 2."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags

from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.runtime.exit_status import INTERRUPTED, USAGE_ERROR


def run(main: Callable[[], None]) -> None:
    """Parses the flags, which are defined before, and calls `main`; the body of an entry point.

    `main` may raise UserError, CheckpointError or OSError for what the user can mend. Words beside
    the flags are a mistake; see `run_with_words`.
    """

    def alone(words: Sequence[str]) -> None:
        if words:
            raise UserError(f"unexpected argument {words[0]!r}: settings are --NAME=VALUE")
        main()

    run_with_words(alone)


def run_with_words(main: Callable[[Sequence[str]], None]) -> None:
    """`run` for a command that takes words beside its flags; `main` gets them."""
    app.run(lambda argv: _reported(main, argv[1:]), flags_parser=_parsed)


def _reported(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> None:
    try:
        main(words)
    except (UserError, CheckpointError, OSError) as error:
        _exit(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _parsed(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _exit(error)


def _exit(error: Exception) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(USAGE_ERROR)
