"""The command line: T5X's flags, gin, and errors of one line."""

import ast
import copy
import inspect
import os
import re
import signal
import sys
import tokenize
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

import gin
from absl import app, flags, logging
from etils import epath
from gin import config as gin_config

from prompt_tuning import cli_settings, distributed, preemption
from prompt_tuning.checkpoint.files import renamed_when_done
from prompt_tuning.data.skip_flag import SKIP_BAD_ROWS
from prompt_tuning.errors import UserError

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A gin file; repeatable, later ones win. Found below the search paths."
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "A gin binding, applied after the files; --gin.NAME=VALUE is short for it."
)
_SEARCH_PATHS = flags.DEFINE_list(
    "gin_search_paths", ["."], "Folders of gin files; the package's own configs come last."
)
_TFDS_DATA_DIR = flags.DEFINE_string("tfds_data_dir", None, "Where TFDS keeps prepared data.")
_CACHE_DIRS = flags.DEFINE_list(
    "seqio_additional_cache_dirs", [], "Folders of SeqIO's offline cache, for USE_CACHED_TASKS."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the configuration, parameters and shardings; run nothing."
)
_MULTIPROCESS = flags.DEFINE_bool(
    "multiprocess",
    False,
    "This is one of several processes; which, the cluster tells, or the three flags below.",
)
flags.DEFINE_alias("multiprocess_gpu", "multiprocess")
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, of several processes."
)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "How many processes there are.")
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Which one this is, from 0.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

USAGE_ERROR = 2
INTERRUPTED = 130
RESUME_ME = os.EX_TEMPFAIL  # 75
# Arguments of what a command runs that shapes do not depend on.
NOT_FOR_A_DRY_RUN = (
    "model_dir",
    "output_dir",
    "data",
    "mixture",
    "tasks",
    "vocabulary",
    "initial_checkpoint",
)


def configs_folder() -> Path:
    """The gin files that travel with the package (in a checkout they lie beside it)."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def main(function: Callable) -> None:
    """Runs `function` with the parameters that gin gives it; the body of an entry point."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before seqio brings TensorFlow in
    argv = expand_gin_flags(sys.argv)
    with distributed.ends_for_all():
        app.run(lambda rest: _run(function, rest), argv=argv, flags_parser=_parse_flags)


def expand_gin_flags(argv: Sequence[str]) -> list[str]:
    """Rewrites --gin.NAME=VALUE to --gin_bindings; a bare word or path needs no inner quotes."""
    out = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name.startswith("--gin.") and equals:
            argument = f"--gin_bindings={name.removeprefix('--gin.')} = {_gin_value(value)}"
        out.append(argument)
    return out


def _gin_value(value: str) -> str:
    """`value` as gin reads it, or quoted where it is neither a literal nor a reference."""
    if value[:1] in ("@", "%", "[", "(", "{"):
        return value
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return repr(value)
    return value


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _exit(error)


def _run(function: Callable, argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file at INFO
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    before = signal.signal(signal.SIGTERM, preemption.stop)
    try:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}: settings are --gin.NAME=VALUE")
        _join_processes()
        bound = parse_gin(function, NOT_FOR_A_DRY_RUN if _DRY_RUN.value else ())
        if _TFDS_DATA_DIR.value or _CACHE_DIRS.value:
            from prompt_tuning.data.quiet import seqio

            seqio.set_tfds_data_dir_override(_TFDS_DATA_DIR.value)
            seqio.add_global_cache_dirs(_CACHE_DIRS.value)
        if _DRY_RUN.value:
            print(gin.config_str())
        with distributed.deaths_first():
            arguments = copy.deepcopy(bound)  # gin makes what they refer to
            function(**arguments, on_start=write_config, dry_run=_DRY_RUN.value)
    except (ValueError, OSError, FloatingPointError) as error:
        _exit(error)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except preemption.Preempted:
        print("stopped: the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(RESUME_ME)
    finally:
        signal.signal(signal.SIGTERM, before)


def _join_processes() -> None:
    """Makes this process one of several, if the flags say so; the first alone prints."""
    given = (_COORDINATOR_ADDRESS.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value)
    if _MULTIPROCESS.value or given != (None, None, None):
        distributed.initialize(*given)


def _exit(error: Exception) -> NoReturn:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
        traceback.print_exc()
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def one_line(error: Exception) -> str:
    """The whole message of an error in one line, less what gin adds to it."""
    text = re.sub(r"^\[Errno \d+\] ", "", str(error)).split("\n  In call to configurable")[0]
    # gin appends where the statement is; that of the outermost file comes last.
    where = r'\n  In (?:file "(.*)",|bindings string) line (\d+)\n *(.*)'
    if found := re.search(where, text):
        file, line, statement = found.groups()
        text = f"{f'{file}:{line}' if file else statement.strip()}: {text[: found.start()]}"
    return " ".join(text.split("\n")).strip()


def search(folders: Sequence[str]) -> None:
    """Lets gin look for files in `folders`, and nowhere else."""
    # It would also look in importable packages, and takes any folder `runs` for one.
    gin_config._FILE_READERS[:] = [(open, os.path.isfile)]
    gin_config._LOCATION_PREFIXES[:] = ["", *folders]


def parse_gin(function: Callable, unneeded: Collection[str] = ()) -> dict[str, Any]:
    """`parse` of the gin files and bindings of the flags."""
    bindings = list(_GIN_BINDINGS.value)
    if SKIP_BAD_ROWS.value is not None:
        bindings.append(f"SKIP_BAD_ROWS = {SKIP_BAD_ROWS.value}")
    return parse(function, _GIN_FILE.value, bindings, unneeded)


def gin_folders() -> list[str]:
    """Where gin files are looked for."""
    return [*_SEARCH_PATHS.value, str(configs_folder())]


def parse(
    function: Callable,
    files: Sequence[str],
    bindings: Sequence[str],
    unneeded: Collection[str] = (),
    kind: str = "runs",
) -> dict[str, Any]:
    """Parses gin files and bindings; what was parsed before is forgotten.

    Args:
      function: what gin configures.
      files: of gin.
      bindings: applied after the files.
      unneeded: its arguments that need not be set; they are None in the result.
      kind: folder of the configs that configure it.

    Returns:
      The arguments of `function`, references not followed yet.

    Raises:
      UserError: naming the file, parameter or macro that is wrong.
    """
    folders = gin_folders()
    search(folders)
    gin.clear_config()
    source = "--gin_bindings"
    try:
        for source in files:
            gin.parse_config_file(source)
        source = "--gin_bindings"
        gin.parse_config(bindings)
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}" if error.filename else source
        reason = error.msg.split(" on line ")[0]  # what follows is of Python's parser, not gin's
        statement = (error.text or "").strip()
        raise UserError(f"{place}: gin cannot read {statement!r} ({reason})") from error
    except tokenize.TokenError as error:
        raise UserError(f"{source}: {error.args[0]}; is a bracket or quote not closed?") from error
    except (ValueError, OSError, AttributeError, ImportError, TypeError, LookupError) as error:
        message, missing, _ = one_line(error).partition(" Searched config paths")
        hint = f" Searched: {', '.join(folders)}" if missing else ""
        raise UserError(f"gin: {message}{hint}") from error
    if not (bound := _bound(function)):
        there = sorted(f"{kind}/{path.name}" for path in configs_folder().glob(f"{kind}/*.gin"))
        raise UserError(
            f"no --gin_file configures {function.__name__}; give one of {', '.join(there)}"
        )
    names = [binding.partition("=")[0].strip() for binding in bindings]
    cli_settings.check(function, names, unneeded)
    taken = inspect.signature(function).parameters
    return bound | {name: None for name in unneeded if name in taken}


def _bound(function: Callable) -> dict[str, Any]:
    """What gin binds of a function's arguments; nothing if no gin file has named the function."""
    try:
        return gin.get_bindings(function, resolve_references=False)
    except ValueError:
        return {}


def write_config(folder: epath.Path) -> str:
    """Writes the parsed configuration to `config.gin` in a run's folder, and returns it."""
    settings = gin.config_str()
    with renamed_when_done(folder / "config.gin") as temporary:
        temporary.write_text(settings)
    return settings
