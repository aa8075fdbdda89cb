"""Finds and parses gin files and bindings, and explains in one line what is wrong with them."""

import ast
import os
import re
import tokenize
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import gin
from absl import flags
from etils import epath
from gin import config as gin_config

from prompt_tuning.cli import gin_settings
from prompt_tuning.errors import UserError
from prompt_tuning.runtime.files import renamed_when_done

_SEARCH_PATHS = flags.DEFINE_list(
    "gin_search_paths", ["."], "Folders of gin files; the package's own configs come last."
)

# Gin files of the package, or their folders, in the order in which they are read.
_ORDER = ("runs/demo.gin", "models/", "runs/", "methods/")


def configs_folder() -> Path:
    """The gin files that travel with the package (in a checkout they lie beside it)."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def gin_folders() -> list[str]:
    """Where gin files are looked for."""
    return [*_SEARCH_PATHS.value, str(configs_folder())]


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


def in_order(files: Sequence[str]) -> list[str]:
    """Sorts the package's gin files by what they set, before the user's; others stay as given.

    The order is: `runs/demo.gin`, which is complete; models; runs, which may set what a model does;
    methods, which may set what a run does; files of one's own, which may set everything.
    """

    def rank(file: str) -> int:
        names = (file, f"{file.partition('/')[0]}/") if (configs_folder() / file).is_file() else ()
        return next((i for i, name in enumerate(_ORDER) if name in names), len(_ORDER))

    return sorted(files, key=rank)


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
      unneeded: its arguments that need not be set.
      kind: folder of the configs that configure it.

    Returns:
      The arguments of `function`, references not followed yet.

    Raises:
      UserError: naming the file, parameter or macro that is wrong.
    """
    folders = gin_folders()
    search(folders)
    gin.clear_config()
    bindings = [gin_settings.with_own_name(binding) for binding in bindings]
    source = "--gin_bindings"
    try:
        for source in in_order(files):
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
    gin_settings.check(function, names, unneeded)
    return bound


def arguments_of(function: Callable) -> dict[str, Any]:
    """The arguments that the parsed gin files bind to a function, references not followed yet.

    Raises:
      UserError: If no file configures it, or one of its settings is missing or of a wrong kind.
    """
    if not (bound := _bound(function)):
        raise UserError(f"no --gin_file configures {function.__module__}.{function.__name__}")
    gin_settings.check(function, ())
    return bound


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
