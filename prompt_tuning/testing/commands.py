"""Commands of the package, run in this process."""

import contextlib
import io
import runpy
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock


class CommandResult(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def run_command(command: str | Callable, *arguments: object) -> CommandResult:
    """Runs `python -m COMMAND ARGUMENTS` in this process.

    Args:
      command: Module name, or a function that gin configures, which then runs as `train` does.
      arguments: Words of the command line; each is passed as `str(argument)`.
    """
    import gin
    from absl import flags
    from absl.testing import flagsaver

    from prompt_tuning.cli import gin_command
    from prompt_tuning.data import flags as data_flags
    from prompt_tuning.model import summary

    known_flags = set(flags.FLAGS)
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    gin.clear_config()
    try:
        with (
            mock.patch.object(sys, "argv", ["command", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            flagsaver.flagsaver(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, of an imported module
            if callable(command):
                gin_command.main(
                    command, data_flags.define_flags, data_flags.bindings, plan=summary.plan
                )
            else:
                runpy.run_module(command, run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code
    finally:
        gin.clear_config()
        for name in set(flags.FLAGS) - known_flags:
            delattr(flags.FLAGS, name)
    code = 0 if status is None else status
    return CommandResult(code if isinstance(code, int) else 1, out.getvalue(), err.getvalue())


def assert_mistake(result: CommandResult, part: str) -> None:
    """Asserts that a command ended with status 2 and one line on stderr that contains `part`."""
    assert result.status == 2, result
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and part in lines[0], result.err
