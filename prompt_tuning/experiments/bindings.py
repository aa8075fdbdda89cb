"""Reads gin files as bindings, without importing what they name: what tells two cells apart."""

import functools
import itertools
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from prompt_tuning.cli import gin_parsing
from prompt_tuning.errors import UserError

_DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"


class Statements(NamedTuple):
    """The statements of a gin file with those of the files it includes, or of a text.

    Attributes:
      bindings: `SCOPE/SELECTOR.ARGUMENT`, or the name of a macro, and its value; later ones win.
      imports: names of the imported modules.
    """

    bindings: Sequence[tuple[str, Any]]
    imports: frozenset[str]


class _Unresolved(config_parser.ParserDelegate):
    """Keeps references to configurables and macros by name."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        return {"@": scoped_configurable_name, "called": evaluate}

    def macro(self, macro_name: str) -> Any:
        return {"%": macro_name}


def of_step(
    files: Sequence[str], arguments: Sequence[str], folders: tuple[str, ...]
) -> dict[str, Any]:
    """Returns what gin files and `--gin.NAME=VALUE` flags bind together.

    Raises:
      UserError: for a gin file that does not exist or cannot be parsed.
    """
    flags = gin_parsing.expand_gin_flags(arguments)
    prefix = "--gin_bindings="
    texts = [flag.removeprefix(prefix) for flag in flags if flag.startswith(prefix)]
    statements = [
        *(of_file(file, folders) for file in gin_parsing.in_order(files)),
        *map(_of_text, texts),
    ]
    return dict(itertools.chain.from_iterable(part.bindings for part in statements))


def digestible(value: Any) -> str:
    """Returns a text that is the same for equal bindings, in whatever order they were made."""
    return json.dumps(value, sort_keys=True, default=repr)


@functools.cache
def of_file(name: str, folders: tuple[str, ...]) -> Statements:
    """Parses a gin file that is found in one of `folders`.

    Raises:
      UserError: if it does not exist or cannot be parsed.
    """
    path = next((p for p in (Path(f, name) for f in ("", *folders)) if p.is_file()), None)
    if path is None:
        raise UserError(f"gin_file {name!r}: no such file; searched: {', '.join(folders)}")
    try:
        return _statements(path.read_text(encoding="utf-8"), folders)
    except (tokenize.TokenError, SyntaxError) as error:
        raise UserError(f"{path}: gin cannot read it ({error.args[0]})") from error


@functools.cache
def _of_text(text: str) -> Statements:
    try:
        return _statements(text, ())
    except (tokenize.TokenError, SyntaxError) as error:
        raise UserError(f"{text}: gin cannot read it ({error.args[0]})") from error


def _statements(text: str, folders: tuple[str, ...]) -> Statements:
    bindings: list[tuple[str, Any]] = []
    imports: set[str] = set()
    for statement in config_parser.ConfigParser(text, _Unresolved()):
        match statement:
            case config_parser.IncludeStatement():
                included = of_file(statement.filename, folders)
                bindings += included.bindings
                imports |= included.imports
            case config_parser.ImportStatement():
                imports.add(statement.module)
            case config_parser.BindingStatement():
                names = f"{statement.scope}/{statement.selector}", statement.arg_name
                name = ".".join(filter(None, names)).removeprefix("/")
                bindings.append((name, statement.value))
    return Statements(bindings, frozenset(imports - {_DYNAMIC_REGISTRATION}))


def axis_values(file: str, folders: tuple[str, ...]) -> dict[str, set[str]]:
    """Returns the values that an experiment's axes have in a gin file, by axis.

    Those of bindings that later ones replace are among them.
    """
    bound = of_file(file, folders).bindings

    def every(value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping) and "%" in value:
            for name, other in bound:
                if name == value["%"]:
                    yield from every(other)
        else:
            yield value

    def texts(values: Any) -> Iterator[str]:
        for own in every(values):
            if isinstance(own, Mapping):
                yield from map(str, own)
            elif isinstance(own, list | tuple):
                for item in own:
                    yield from texts(item)
            else:
                yield str(own)

    axes: dict[str, set[str]] = {}
    for name, value in bound:
        if f".{name}".endswith(".Experiment.axes"):
            for own in every(value):
                for axis, values in own.items() if isinstance(own, Mapping) else ():
                    axes.setdefault(axis, set()).update(texts(values))
    return axes


def reachable(bound: Mapping[str, Any], parameter: str) -> dict[str, Any]:
    """Returns the bindings that the value of FUNCTION.PARAMETER depends on, its own included."""
    reached: dict[str, Any] = {}
    names = [name for name in bound if f".{name}".endswith(f".{parameter}")]
    while names:
        name = names.pop()
        if name not in reached:
            reached[name] = bound[name]
            for reference in _references(bound[name]):
                names += [other for other in bound if _belongs(other, reference)]
    return reached


def _references(value: Any) -> Iterator[str]:
    """Yields "%MACRO" and "@CONFIGURABLE" of all references in a value."""
    if isinstance(value, Mapping):
        for sigil in value.keys() & {"@", "%"}:
            yield f"{sigil}{value[sigil]}"
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)


def _belongs(name: str, reference: str) -> bool:
    """Whether the binding `name` is of the macro or configurable that is referred to."""
    if reference.startswith("%"):
        return name == reference[1:]
    selector = name.rpartition(".")[0].rpartition("/")[2]
    return f".{selector}".endswith(f".{reference[1:].rpartition('/')[2]}")
