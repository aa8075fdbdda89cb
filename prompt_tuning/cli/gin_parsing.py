"""Finds and parses gin files and bindings; a mistake in them is an error of one line."""

import ast
import os
import re
import tokenize
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any

import gin
from absl import flags
from etils import epath
from gin import config as gin_config
from gin import config_parser

from prompt_tuning.cli import gin_history, gin_settings
from prompt_tuning.errors import UserError
from prompt_tuning.runtime.files import renamed_when_done

_SEARCH_PATHS = flags.DEFINE_list(
    "gin_search_paths", ["."], "Folders of gin files; the package's own configs come last."
)

# Gin files of the package, or their folders, in the order in which they are read.
_ORDER = ("runs/demo.gin", "models/", "runs/", "methods/")


def configs_folder() -> Path:
    """Returns the folder of the package's gin files, which in a checkout is beside the package."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def gin_folders() -> list[str]:
    """Returns the folders that are searched for gin files."""
    return [*_SEARCH_PATHS.value, str(configs_folder())]


def expand_gin_flags(argv: Sequence[str]) -> list[str]:
    """Rewrites --gin.NAME=VALUE to --gin_bindings; a bare word or path needs no inner quotes.

    Raises:
      UserError: For a name without a value, as in `--gin.NAME = VALUE`.
    """
    out = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name.startswith("--gin."):
            if not equals:
                raise UserError(f"{name}: has no value; write {name}=VALUE, without spaces")
            argument = f"--gin_bindings={name.removeprefix('--gin.')} = {_gin_value(value)}"
        out.append(argument)
    return out


def _gin_value(value: str) -> str:
    """Quotes a text that is no value of gin's, such as `[CLS]`; returns any other as it is."""
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value if _is_gin_value(value) else repr(value)
    return value


class _AnyReference(config_parser.ParserDelegate):
    """Takes every reference and macro that is well-formed, whether it exists or not."""

    def configurable_reference(self, *_: Any) -> None: ...

    def macro(self, *_: Any) -> None: ...


def _is_gin_value(value: str) -> bool:
    try:
        return len(list(config_parser.ConfigParser(f"NAME = {value}", _AnyReference()))) == 1
    except (ValueError, SyntaxError, tokenize.TokenError):
        return False


def one_line(error: Exception) -> str:
    """Returns the message of an error in one line, without what gin adds to it."""
    text = re.sub(r"^\[Errno \d+\] ", "", str(error)).split("\n  In call to configurable")[0]
    # gin appends the places of the statement, from the innermost to the outermost file.
    where = r'\n  In (?:file "(.*)",|bindings string) line (\d+)\n *(.*)'
    if match := re.search(where, text):
        file, line, statement = match.groups()
        text = f"{f'{file}:{line}' if file else statement.strip()}: {text[: match.start()]}"
    return " ".join(text.split("\n")).strip()


def search(folders: Sequence[str]) -> dict[str, str]:
    """Makes gin search `folders` for files, and nothing else.

    Returns:
      The texts of the files that gin has read since, by path, to which it adds those that it reads.
    """
    texts: dict[str, str] = {}

    def opened(path: str) -> IO[str]:
        stream = gin_history.opened(path)
        texts[path] = stream.read()
        stream.seek(0)
        return stream

    # By default it also searches importable packages, and any folder `runs` counts as one.
    gin_config._FILE_READERS[:] = [(opened, os.path.isfile)]
    gin_config._LOCATION_PREFIXES[:] = ["", *folders]
    return texts


def in_order(files: Sequence[str]) -> list[str]:
    """Sorts the package's gin files by what they set, before the user's; others stay as given.

    The order is: `runs/demo.gin`, which is complete; models; runs, which may set what a model does;
    methods, which may set what a run does; files of one's own, which may set everything.
    """

    def rank(file: str) -> int:
        names = (file, f"{file.partition('/')[0]}/") if (configs_folder() / file).is_file() else ()
        return next((i for i, name in enumerate(_ORDER) if name in names), len(_ORDER))

    return sorted(files, key=rank)


def check_one_of_a_kind(files: Sequence[str]) -> None:
    """Checks that the command line names one model and one method of the package at most.

    Raises:
      UserError: If it names two, of which one would replace the other.
    """
    hints = {
        "models/": "",
        "methods/": ", or a file of your own that combines them (docs/methods.md)",
    }
    for kind, hint in hints.items():
        of_kind = {
            file for file in files if file.startswith(kind) and (configs_folder() / file).is_file()
        }
        if len(of_kind) > 1:
            raise UserError(
                f"--gin_file={', --gin_file='.join(sorted(of_kind))}: one would replace the other; "
                f"give one{hint}"
            )


def parse(
    function: Callable,
    files: Sequence[str],
    bindings: Sequence[str],
    unneeded: Collection[str] = (),
    kind: str = "runs",
) -> dict[str, Any]:
    """Parses gin files and bindings, in place of those parsed before.

    Args:
      function: Function that gin configures.
      files: Gin files, in any order.
      bindings: Gin bindings, applied after the files.
      unneeded: Arguments of `function` that need not be set.
      kind: Folder of the gin files that configure such functions.

    Returns:
      The arguments of `function`; references are not resolved yet.

    Raises:
      UserError: Naming the file, parameter or macro that is wrong.
    """
    folders = gin_folders()
    texts = search(folders)
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
        reason = error.msg.split(" on line ")[0]  # the rest is about Python's parser, not gin
        statement = (error.text or "").strip()
        raise UserError(f"{place}: gin cannot read {statement!r} ({reason})") from error
    except tokenize.TokenError as error:
        raise UserError(f"{source}: {error.args[0]}; is a bracket or quote not closed?") from error
    except (ValueError, OSError, AttributeError, ImportError, TypeError, LookupError) as error:
        message, missing, _ = one_line(error).partition(" Searched config paths")
        hint = f" Searched: {', '.join(folders)}" if missing else ""
        if "No module named 't5x" in message:
            hint = "; T5X's gin files are for T5X, which takes prompts as docs/t5x.md says"
        raise UserError(f"gin: {message}{hint}") from error
    if not (bound := _bound(function)):
        raise UserError(
            f"no --gin_file configures {function.__name__}; give one of "
            f"{', '.join(_files_for(function, kind))}"
        )
    names = [binding.partition("=")[0].strip() for binding in bindings]
    gin_settings.check(function, names, unneeded)
    gin_settings.warn_of_scopes([*texts.values(), *bindings])
    package = configs_folder().resolve()
    own = [text for path, text in texts.items() if package not in Path(path).resolve().parents]
    gin_settings.warn_of_macros(own, [*texts.values(), *bindings])
    return bound


def _files_for(function: Callable, kind: str) -> list[str]:
    """The package's gin files in the folder `kind` that configure a function; all if none does."""
    package, _, module = function.__module__.rpartition(".")
    paths = sorted(configs_folder().glob(f"{kind}/*.gin"))
    imports = re.compile(rf"^from {package} import {module}\b", re.MULTILINE)
    fitting = [path for path in paths if imports.search(path.read_text(encoding="utf-8"))]
    return [f"{kind}/{path.name}" for path in fitting or paths]


def arguments_of(function: Callable) -> dict[str, Any]:
    """Returns the arguments that gin binds to a function; references are not resolved yet.

    Raises:
      UserError: If no file configures it, or one of its settings is missing or of a wrong kind.
    """
    if not (bound := _bound(function)):
        raise UserError(f"no --gin_file configures {function.__module__}.{function.__name__}")
    gin_settings.check(function, ())
    return bound


def _bound(function: Callable) -> dict[str, Any]:
    """Returns the arguments that gin binds to a function; none if no gin file names it."""
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
