"""The command line: T5X's flags, gin, and errors of one line. The only module that imports gin."""

import ast
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gin
from absl import app, flags, logging
from etils import epath

from prompt_tuning.checkpoint.files import renamed_when_done
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
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the operative config, parameters and shardings; run nothing."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

USAGE_ERROR = 2


def configs_folder() -> Path:
    """The gin files that travel with the package (in a checkout they lie beside it)."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def main(function: Callable) -> None:
    """Runs `function` with the parameters that gin gives it; the body of an entry point."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before seqio brings TensorFlow in
    app.run(lambda argv: _run(function, argv), argv=expand_gin_flags(sys.argv))


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


def _run(function: Callable, argv: Sequence[str]) -> None:
    try:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}: settings are --gin.NAME=VALUE")
        configured = parse_gin(function)
        if _TFDS_DATA_DIR.value:
            import seqio

            seqio.set_tfds_data_dir_override(_TFDS_DATA_DIR.value)
        if _DRY_RUN.value:
            print(gin.config_str())
        configured(on_start=write_config, dry_run=_DRY_RUN.value)
    except (ValueError, OSError, FloatingPointError) as error:
        if _DEBUG.value:
            raise
        # gin appends lines on the call; the message itself is the first one.
        print(f"error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def parse_gin(function: Callable) -> Callable:
    """Parses the gin files and bindings of the flags; returns `function` configured by them.

    Raises:
      UserError: naming the file, parameter or macro that is wrong.
    """
    for folder in (*_SEARCH_PATHS.value, str(configs_folder())):
        gin.add_config_file_search_path(folder)
    # gin logs an error for each search path that it tries in vain; its exceptions tell enough.
    logging.set_verbosity(logging.FATAL)
    try:
        gin.parse_config_files_and_bindings(_GIN_FILE.value, _GIN_BINDINGS.value)
        return _checked(gin.get_configurable(function))
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}: {error.text}") from error
    except (ValueError, OSError, AttributeError, ImportError, TypeError, LookupError) as error:
        raise UserError(f"gin: {str(error).strip().splitlines()[0]}") from error
    finally:
        logging.set_verbosity(logging.WARNING)


def _checked(configured: Callable) -> Callable:
    """Turns gin's complaint on a setting that nobody gave into a `UserError`."""

    def call(**arguments: object) -> object:
        try:
            return configured(**arguments)
        except RuntimeError as error:
            if "Required bindings" not in str(error):
                raise
            raise UserError(str(error).strip().splitlines()[0]) from error

    return call


def write_config(folder: epath.Path) -> None:
    """Writes the parsed configuration to `config.gin` in a run's folder."""
    with renamed_when_done(folder / "config.gin") as temporary:
        temporary.write_text(gin.config_str())
