"""An experiment's grid: axes of settings, and the cells that they make.

A setting is what the command line would say, as a mapping: `gin_file` (one or several) and macros
or parameters by name. Texts may hold `$NAME`: a variable of the experiment, an axis (the cell's
value), `$step` (the step's name) or `$cell` (the cell's folder).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
import string
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.runtime.files import is_remote

Setting = Mapping[str, Any]
Axis = Mapping[str | int, Setting] | Sequence[Any]

# The commands that a cell is made of, and the macro of the folder that each one writes to.
COMMANDS = {
    "train": "MODEL_DIR",
    "eval": "EVAL_OUTPUT_DIR",
    "ensemble": "EVAL_OUTPUT_DIR",
}
FILES, STEPS, COMMAND = "gin_file", "steps", "command"  # keys of a setting that are no macros
_IMPORT = re.compile(r"(?:\bfrom ([\w. ]+) )?\bimport ([\w. ]+?) \n")  # between a file's words
_VALUE = re.compile(r"[\w.]+")  # of an axis: it is part of a cell's name


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a cell.

    Attributes:
      name: of the step, and of its folder within the cell's.
      command: of `COMMANDS`.
      files: gin files, in order.
      settings: values by macro or parameter; `$cell` is still in them.
    """

    name: str
    command: str
    files: tuple[str, ...]
    settings: Setting

    def arguments(self, folder: str) -> list[str]:
        """The flags of the command for a cell in `folder`."""
        settings = {COMMANDS[self.command]: f"{folder}/{self.name}", **self.settings}
        filled = _filled(settings, {"cell": folder}, self.name)
        values = {k: v if isinstance(v, str) else repr(v) for k, v in filled.items()}
        return [
            *(f"--gin_file={file}" for file in self.files),
            *(f"--gin.{name}={value}" for name, value in values.items()),
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of the grid.

    Attributes:
      name: its values, in the order of the axes.
      axes: its value on each axis.
      steps: run one after the other.
      digest: of the steps' resolved settings, with what their gin files say: a cell whose settings
        change is another cell, and cells of several experiments with the same settings are one.
    """

    name: str
    axes: Mapping[str, str]
    steps: tuple[Step, ...]
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A grid of runs.

    Attributes:
      name: of the experiment, and of the folder of its tables.
      output: folder of all experiments; cells lie in `output/cells/DIGEST`, and those of the same
        settings are shared by the experiments there.
      steps: a setting with `command` by name, in the order in which they run.
      axes: the settings of each value, or plain values that the templates use, or several of both;
        the first axis varies slowest. A setting here may hold `steps` (which of them run in such a
        cell; else all do) and, under a step's name, a setting for that step alone. Later axes win.
      variables: what `$NAME` stands for, where it is no axis.
      exclude: cells that are left out: those that have all named values of one of these. A value
        may be several, or begin with "!" (any but this one).
      task_names: short names of SeqIO tasks in tables, beside those that the axes tell.
      keep_weights: keep the weights of cells that train every parameter.
      paper: name of the paper's numbers in `experiments.printed` to show beside these.

    Raises:
      UserError: naming the part that is wrong.
    """

    name: str
    output: str
    steps: Mapping[str, Setting]
    axes: Mapping[str, Axis]
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exclude: Sequence[Mapping[str, str | Sequence[str]]] = ()
    task_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep_weights: bool = False
    paper: str = ""

    def __post_init__(self) -> None:
        if not _VALUE.fullmatch(self.name):
            raise UserError(f"Experiment.name = {self.name!r}: letters, digits, _ and . only")
        if is_remote(self.output) or not self.output:
            raise UserError(
                f"{self.name}: output = {self.output!r}: must be a folder of a file system that "
                "all who run cells share"
            )
        for step, setting in self.steps.items():
            if setting.get(COMMAND) not in COMMANDS:
                raise UserError(
                    f"{self.name}: step {step!r}: command = {setting.get(COMMAND)!r}; choose from "
                    f"{', '.join(COMMANDS)}"
                )
        for axis, values in self.axes.items():
            if isinstance(values, str) or not isinstance(values, Mapping | Sequence):
                raise UserError(
                    f"{self.name}: axis {axis!r} = {values!r}: give a list or a mapping of values"
                )
            found = _by_value(values)
            if not found:
                raise UserError(f"{self.name}: axis {axis!r} = {values!r}: has no values")
            if odd := [value for value in found if not _VALUE.fullmatch(value)]:
                raise UserError(
                    f"{self.name}: axis {axis!r}: {odd[0]!r} is part of names; letters, digits, "
                    "_ and . only"
                )
        for rule in self.exclude:
            if unknown := [axis for axis in rule if axis not in self.axes]:
                raise UserError(f"{self.name}: exclude: there is no axis {unknown[0]!r}")

    @property
    def root(self) -> Path:
        return Path(self.output).expanduser()

    def make_root(self) -> None:
        """Before anything is written to it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"OUTPUT = {self.output!r}: cannot be made a folder ({error.strerror})"
            ) from error

    @property
    def folder(self) -> Path:
        """Where its tables and figures lie."""
        return self.root / self.name

    def cell_folder(self, cell: Cell) -> Path:
        return self.root / "cells" / cell.digest

    def cells(self, folders: Sequence[str]) -> list[Cell]:
        """All cells, in the order in which they are run.

        Args:
          folders: where gin files are looked for.

        Raises:
          UserError: for a gin file or a variable that is not there, or two cells that are the same.
        """
        found: dict[str, Cell] = {}
        axes = {axis: _by_value(values) for axis, values in self.axes.items()}
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            if any(_matches(chosen, rule) for rule in self.exclude):
                continue
            settings = [axes[axis][value] for axis, value in chosen.items()]
            steps = tuple(self._steps(settings, {**self.variables, **chosen}))
            cell = Cell("-".join(values), chosen, steps, _digest(steps, tuple(folders)))
            if other := found.get(cell.digest):
                raise UserError(
                    f"{self.name}: the cells {other.name} and {cell.name} have the same settings: "
                    "one of the axes changes nothing"
                )
            found[cell.digest] = cell
        return list(found.values())

    def modules(self, folders: Sequence[str]) -> list[str]:
        """What the gin files of all cells import."""
        files = {file for cell in self.cells(folders) for step in cell.steps for file in step.files}
        texts = (" ".join(_words(file, tuple(folders))) for file in files)
        found = {
            ".".join(part for part in match.groups() if part).replace(" ", "")
            for text in texts
            for match in _IMPORT.finditer(text)
        }
        return sorted(found - {"__gin__.dynamic_registration"})

    def short_names(self) -> dict[str, str]:
        """Tasks' names in tables, by SeqIO task."""
        names = {}
        for values in self.axes.values():
            for value, setting in _by_value(values).items():
                if isinstance(task := setting.get("MIXTURE_OR_TASK_NAME"), str):
                    names[task] = value
        return {**names, **self.task_names}

    def _steps(self, settings: Sequence[Setting], variables: Mapping[str, str]) -> Iterator[Step]:
        names = [setting[STEPS] for setting in settings if STEPS in setting]
        wanted = names[-1] if names else tuple(self.steps)
        if unknown := [name for name in wanted if name not in self.steps]:
            raise UserError(f"{self.name}: steps: there is no {unknown[0]!r}")
        for name in self.steps:
            if name in wanted:
                layers = [part for setting in settings for part in (setting, setting.get(name, {}))]
                yield self._step(name, [self.steps[name], *layers], {**variables, "step": name})

    def _step(self, name: str, layers: Sequence[Setting], variables: Mapping[str, str]) -> Step:
        where = f"{self.name}: step {name!r}"
        files = [file for layer in layers for file in _several(layer.get(FILES, ()))]
        no_macros = {FILES, STEPS, COMMAND, *self.steps}
        macros = {k: v for layer in layers for k, v in layer.items() if k not in no_macros}
        variables = {**variables, "cell": "$cell"}  # known when the step is run
        return Step(
            name,
            layers[0][COMMAND],
            tuple(_filled(files, variables, where)),
            _filled(macros, variables, where),
        )


def _by_value(values: Axis) -> dict[str, Setting]:
    if isinstance(values, Mapping):
        return {str(value): setting for value, setting in values.items()}
    found: dict[str, Setting] = {}
    for value in values:
        several = isinstance(value, Mapping | list | tuple)
        found |= _by_value(value) if several else {str(value): {}}
    return found


def _several(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _matches(chosen: Mapping[str, str], rule: Mapping[str, str | Sequence[str]]) -> bool:
    return all(
        any(
            chosen[axis] != value[1:] if value.startswith("!") else chosen[axis] == value
            for value in map(str, _several(values))
        )
        for axis, values in rule.items()
    )


def _filled(value: Any, variables: Mapping[str, str], where: str) -> Any:
    """`value` with `$NAME` in all its texts replaced."""
    if isinstance(value, str):
        try:
            return string.Template(value).substitute(variables)
        except KeyError as error:
            known = ", ".join(sorted(variables))
            raise UserError(
                f"{where}: {value!r}: there is no ${error.args[0]}; there are {known}"
            ) from error
        except ValueError as error:
            raise UserError(f"{where}: {value!r}: a $ without a name; write $$ for one") from error
    if isinstance(value, Mapping):
        return {key: _filled(item, variables, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, variables, where) for item in value]
    return value


def _digest(steps: Sequence[Step], folders: tuple[str, ...]) -> str:
    content = [
        (step.name, step.command, [_words(file, folders) for file in step.files], step.settings)
        for step in steps
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def _words(name: str, folders: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a gin file without comments and white space, included files in their place."""
    path = next((p for p in (Path(f, name) for f in ("", *folders)) if p.is_file()), None)
    if path is None:
        raise UserError(f"gin_file {name!r}: no such file; searched: {', '.join(folders)}")
    try:
        with tokenize.open(path) as file:
            tokens = list(tokenize.generate_tokens(file.readline))
    except (tokenize.TokenError, SyntaxError) as error:
        raise UserError(f"{path}: gin cannot read it ({error.args[0]})") from error
    words: list[str] = []
    for token in tokens:
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if words[-1:] == ["include"] and token.type == tokenize.STRING:
            words[-1:] = _words(token.string[1:-1], folders)
        else:
            words.append(token.string)
    return tuple(words)
