"""Commands that gin configures: T5X's flags, and a mistake in one line with status 2."""

import copy
import inspect
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import gin
from absl import app, flags, logging

from prompt_tuning.cli.gin_parsing import (
    arguments_of,
    check_one_of_a_kind,
    expand_gin_flags,
    one_line,
    parse,
    write_config,
)
from prompt_tuning.cli.plain_command import Flags
from prompt_tuning.errors import UserError
from prompt_tuning.runtime import distributed, preemption
from prompt_tuning.runtime.exit_status import INTERRUPTED, RESUMABLE, USAGE_ERROR

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A gin file below the search paths; repeatable, in any order."
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "A gin binding, applied after the files; --gin.NAME=VALUE is short for it."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the configuration, parameters and shardings; run nothing."
)
_MULTIPROCESS = flags.DEFINE_bool(
    "multiprocess",
    False,
    "Join a multi-process run; rank and address come from the cluster or the flags below.",
)
flags.DEFINE_alias("multiprocess_gpu", "multiprocess")
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0 of a multi-process run."
)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Number of processes.")
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Rank of this process, from 0.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

# Arguments of commands that a dry run does not need.
NOT_FOR_A_DRY_RUN = (
    "model_dir",
    "output_dir",
    "data",
    "mixture",
    "tasks",
    "vocabulary",
    "initial_checkpoint",
)


def main(
    function: Callable,
    define_flags: Callable[[], Flags] = dict,
    bindings: Callable[..., Sequence[str]] = lambda: (),
    files: Sequence[str] = (),
    plan: Callable[..., str] | None = None,
    resumes: bool = True,
) -> None:
    """Runs `function` with the arguments that gin binds to it; the body of an entry point.

    Args:
      function: Function that gin configures. It is also given `on_start`, if it has a parameter of
        that name: a function that writes the configuration to a folder.
      define_flags: Defines the flags that this command has in addition.
      bindings: Takes the values of these flags, and returns the gin bindings that they stand for.
      files: Gin files that are read before those of the command line.
      plan: Function that gin configures too. With `--dry_run` its text is printed, and `function`
        is not called.
      resumes: Whether a run that is interrupted has something to save or to continue. If not,
        Ctrl-C and SIGTERM end it at once, while JAX compiles too.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before seqio brings TensorFlow in
    holders = define_flags()

    def run(words: Sequence[str]) -> None:
        if words[1:]:
            raise UserError(f"unexpected argument {words[1]!r}: settings are --gin.NAME=VALUE")
        _join_processes()
        of_flags = bindings(**{name: holder.value for name, holder in holders.items()})
        check_one_of_a_kind(_GIN_FILE.value)
        parsed = [*files, *_GIN_FILE.value], [*_GIN_BINDINGS.value, *of_flags]
        if not DRY_RUN.value:
            _call(function, parse(function, *parsed))
        elif plan is None:
            raise UserError(f"--dry_run: {function.__name__} has no dry run")
        else:
            arguments = planned(function, plan, *parsed)
            print(gin.config_str())
            print(plan(**arguments))

    try:
        argv = expand_gin_flags(sys.argv)
    except UserError as error:
        _exit(error)
    with distributed.ends_for_all():
        app.run(lambda words: _reported(run, words, resumes), argv=argv, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        name = getattr(error, "flagname", "")
        hint = f"; a setting is --gin.{name}=VALUE" if name.isupper() else ""
        _exit(UserError(f"{error}{hint}"))


def _reported(
    run: Callable[[Sequence[str]], None], words: Sequence[str], resumes: bool = True
) -> None:
    """Calls `run`; its errors, Ctrl-C and SIGTERM become a line and an exit status."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    at_once = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.SIG_DFL}
    handlers = {signal.SIGTERM: preemption.stop} if resumes else at_once
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        run(words)
    except (ValueError, OSError, FloatingPointError) as error:
        _exit(error)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        preemption.end(INTERRUPTED)
    except preemption.Preempted:
        print("stopped: run the same command again to resume", file=sys.stderr)
        preemption.end(RESUMABLE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _call(function: Callable, bound: dict[str, Any]) -> None:
    """Calls a function with what gin binds to it, references not followed yet."""
    if "on_start" in inspect.signature(function).parameters:
        bound |= {"on_start": write_config}
    with distributed.deaths_first():
        function(**copy.deepcopy(bound))  # copying creates what references refer to


def planned(
    function: Callable, plan: Callable, files: Sequence[str], bindings: Sequence[str]
) -> dict[str, Any]:
    """The arguments that gin binds to `plan`, once the settings of `function` are checked.

    Args:
      function: Function that a run would call; its data and folders need not be set.
      plan: Function that shows what a run would do.
      files: Gin files.
      bindings: Gin bindings, applied after the files.

    Raises:
      UserError: Naming the file, parameter or macro that is wrong.
    """
    bound = parse(function, files, bindings, NOT_FOR_A_DRY_RUN)
    copy.deepcopy(bound.get("fit"))  # created to check its numbers
    return copy.deepcopy(arguments_of(plan))


def _join_processes() -> None:
    """Joins a multi-process run if the flags say so; process 0 alone prints then."""
    place = (_COORDINATOR_ADDRESS.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value)
    if _MULTIPROCESS.value or place != (None, None, None):
        distributed.join(*place)


def _exit(error: Exception) -> NoReturn:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
        traceback.print_exc()
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(USAGE_ERROR)
