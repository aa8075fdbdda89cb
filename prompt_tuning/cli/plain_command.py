"""Commands without gin: typed flags, and a mistake in one line on stderr with status 2.

A command is a shim: its docstring, its flags, and a call of `main` with the function that does the
work.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.runtime import exit_status

Flags = dict[str, flags.FlagHolder]  # by the argument of the body that each one sets


def main(
    body: Callable[..., object], define_flags: Callable[[], Flags] = dict, words: bool = False
) -> None:
    """Parses the command line and calls `body`.

    Args:
      body: What the command does. Its keyword arguments are the values of the flags. It raises
        UserError, CheckpointError or OSError for what the user can fix.
      define_flags: Defines the command's flags. A process can define a flag's name once, so shims
        wait with it until they run as a command.
      words: Whether `body` takes the words besides the flags, as its first argument; otherwise
        they are a mistake.
    """
    holders = define_flags()

    def run(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.ERROR)  # JAX and Orbax report what they do below it
        if argv[1:] and not words:
            exit_with(UserError(f"unexpected argument {argv[1]!r}: settings are --NAME=VALUE"))
        values = {argument: holder.value for argument, holder in holders.items()}
        try:
            body(*([argv[1:]] if words else []), **values)
        except (UserError, CheckpointError, OSError) as error:
            exit_with(error)
        except KeyboardInterrupt:
            sys.exit(exit_status.INTERRUPTED)

    app.run(run, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags and returns the other words; a mistake in them ends the process."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        exit_with(error)


def exit_with(error: Exception) -> NoReturn:
    """Ends the process with an error's message in one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(exit_status.USAGE_ERROR)
