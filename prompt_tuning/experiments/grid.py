"""An experiment's grid: axes of settings, and the cells that they span.

docs/reproduce.md defines the language: settings, axes, `$NAME` in texts, and rules.
"""

import dataclasses
import hashlib
import itertools
import re
import string
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.experiments import bindings
from prompt_tuning.runtime.files import is_remote

Layer = Mapping[str, Any]
Setting = Layer | Sequence[Any]  # a layer, or settings of which later ones win
Axis = Mapping[str | int, Setting] | Sequence[Any]
Rule = Mapping[str, str | Sequence[str]]

# The commands that a cell may run, and the macro of the folder that each one writes to.
COMMANDS = {
    "train": "MODEL_DIR",
    "eval": "EVAL_OUTPUT_DIR",
    "ensemble": "EVAL_OUTPUT_DIR",
}
FILES, STEPS, COMMAND = "gin_file", "steps", "command"  # keys of a setting that are not macros
FILES_TASK = "files"  # name that `data.source` gives to files of one's own
_VALUE = re.compile(r"[\w.]+")  # of an axis: it is part of a cell's name


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a cell.

    Attributes:
      name: Name of the step, and of its folder within the cell's.
      command: A key of `COMMANDS`.
      files: Gin files, in order.
      settings: Values by macro or parameter; `$cell` is not replaced yet.
    """

    name: str
    command: str
    files: tuple[str, ...]
    settings: Layer

    def arguments(self, folder: str) -> list[str]:
        """Returns the flags of the command for a cell in `folder`."""
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
      name: The values of its axes, in their order.
      axes: Its value on each axis.
      steps: Commands to run one after the other.
      digest: Hash of all bindings of its steps. A cell whose settings change is another cell, and
        cells of several experiments with the same settings are one.
    """

    name: str
    axes: Mapping[str, str]
    steps: tuple[Step, ...]
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A grid of runs.

    Attributes:
      name: Name of the experiment, and of the folder of its tables.
      output: Folder of all experiments. Cells are in `output/cells/DIGEST`, shared by the
        experiments that have them in common.
      steps: Settings with a `command` by name, in the order in which they run.
      axes: Settings of each value, or plain values for `$NAME`, or a sequence of both. The first
        axis varies slowest, and the settings of later axes win.
      variables: Texts for `$NAME`, besides the axes.
      exclude: Rules; cells that match one of them are left out.
      task_names: Short names of SeqIO tasks in tables, besides those that follow from the axes.
      keep_weights: Whether to keep the weights of cells that train every parameter.
      paper: Key of `results.paper_numbers.PRINTED`, whose numbers the table shows; "" for none.
      row: Scores that the table shows: "trained", by the best step, or "validation", at that step.

    Raises:
      UserError: naming the part that is wrong.
    """

    name: str
    output: str
    steps: Mapping[str, Setting]
    axes: Mapping[str, Axis]
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exclude: Sequence[Rule] = ()
    task_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep_weights: bool = False
    paper: str = ""
    row: str = "trained"

    def __post_init__(self) -> None:
        if not _VALUE.fullmatch(self.name):
            raise UserError(
                f"Experiment.name = {self.name!r}: must be of letters, digits, _ and . only"
            )
        if is_remote(self.output) or not self.output:
            raise UserError(
                f"{self.name}: output = {self.output!r}: must be a folder of a file system that "
                "all hosts of the experiment share"
            )
        for step, setting in self.steps.items():
            if (command := _value(COMMAND, _layers(setting))) not in COMMANDS:
                raise UserError(
                    f"{self.name}: step {step!r}: command = {command!r}; choose from "
                    f"{', '.join(COMMANDS)}"
                )
        for axis, values in self.axes.items():
            if isinstance(values, str) or not isinstance(values, Mapping | Sequence):
                raise UserError(
                    f"{self.name}: axis {axis!r} = {values!r}: must be a list or a mapping of "
                    "values"
                )
            names = [name for name, _ in _values(values)]
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise UserError(f"{self.name}: axis {axis!r}: has the value {twice[0]!r} twice")
            if not names:
                raise UserError(f"{self.name}: axis {axis!r} = {values!r}: has no values")
            if unusable := [name for name in names if not _VALUE.fullmatch(name)]:
                raise UserError(
                    f"{self.name}: axis {axis!r}: {unusable[0]!r} is part of names; it must be of "
                    "letters, digits, _ and . only"
                )
        for rule in self.exclude:
            if unknown := [axis for axis in rule if axis not in self.axes]:
                raise UserError(f"{self.name}: exclude: there is no axis {unknown[0]!r}")
            for axis, values in rule.items():
                texts = [str(value) for value in _as_sequence(values)]
                if not texts or (len(texts) > 1 and any(text.startswith("!") for text in texts)):
                    raise UserError(
                        f"{self.name}: exclude: {axis!r} = {values!r}: must be values of the axis, "
                        "one of which a cell has, or a single '!VALUE'"
                    )

    def check_rules(self, known: Mapping[str, Collection[str]]) -> None:
        """Checks that the values in `exclude` exist.

        Args:
          known: Further values by axis, such as those that this run leaves out.

        Raises:
          UserError: naming a value that the axis does not have.
        """
        for rule in self.exclude:
            for axis, values in rule.items():
                own = list(_by_value(self.axes[axis]))
                for value in (str(value).removeprefix("!") for value in _as_sequence(values)):
                    if value not in {*own, *known.get(axis, ())}:
                        raise UserError(
                            f"{self.name}: exclude: axis {axis!r} has no value {value!r}; choose "
                            f"from {', '.join(own)}"
                        )

    @property
    def root(self) -> Path:
        return Path(self.output).expanduser()

    def make_root(self) -> None:
        """Makes the output folder.

        Raises:
          UserError: if it cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"OUTPUT = {self.output!r}: cannot be made a folder ({error.strerror})"
            ) from error

    @property
    def folder(self) -> Path:
        """Folder of its tables and figures."""
        return self.root / self.name

    def cell_folder(self, cell: Cell) -> Path:
        return self.root / "cells" / cell.digest

    def cells(self, folders: Sequence[str]) -> list[Cell]:
        """Returns all cells, in the order in which they run.

        Args:
          folders: Folders that are searched for gin files.

        Raises:
          UserError: for a gin file or a variable that does not exist, two cells that are the
            same, or if all cells are excluded.
        """
        cells: dict[str, Cell] = {}
        axes = {axis: _by_value(values) for axis, values in self.axes.items()}
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            if any(_matches(chosen, rule) for rule in self.exclude):
                continue
            layers = [layer for axis, value in chosen.items() for layer in axes[axis][value]]
            steps = tuple(self._steps(layers, {**self.variables, **chosen}))
            cell = Cell("-".join(values), chosen, steps, _digest(steps, tuple(folders)))
            if other := cells.get(cell.digest):
                raise UserError(
                    f"{self.name}: the cells {other.name} and {cell.name} have the same settings: "
                    "one of the axes changes nothing"
                )
            cells[cell.digest] = cell
        if not cells:
            raise UserError(f"{self.name}: exclude = {self.exclude!r}: leaves no cell")
        return list(cells.values())

    def modules(self, folders: Sequence[str]) -> list[str]:
        """Returns the names of the modules that the gin files of all cells import."""
        files = {file for cell in self.cells(folders) for step in cell.steps for file in step.files}
        imports = (bindings.of_file(file, tuple(folders)).imports for file in files)
        return sorted(frozenset().union(*imports))

    def short_names(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Returns the names that tasks have in tables, by SeqIO task.

        Args:
          chosen: A cell's value on each axis. They name the cell's own tasks, and its files.
        """
        own: dict[str, str] = {}
        others: dict[str, str] = {}
        for axis, values in self.axes.items():
            for value, layers in _by_value(values).items():
                if isinstance(task := _value("MIXTURE_OR_TASK_NAME", layers), str):
                    (own if value == chosen[axis] else others)[task] = value
        if "task" in chosen:
            own[FILES_TASK] = chosen["task"]
        return {**others, **own, **self.task_names}

    def _steps(self, layers: Sequence[Layer], variables: Mapping[str, str]) -> Iterator[Step]:
        names = _value(STEPS, layers) or tuple(self.steps)
        if unknown := [name for name in names if name not in self.steps]:
            raise UserError(f"{self.name}: steps: there is no {unknown[0]!r}")
        for name in self.steps:
            if name in names:
                own = [part for layer in layers for part in (layer, *_layers(layer.get(name, {})))]
                all_layers = [*_layers(self.steps[name]), *own]
                yield self._step(name, all_layers, {**variables, "step": name})

    def _step(self, name: str, layers: Sequence[Layer], variables: Mapping[str, str]) -> Step:
        where = f"{self.name}: step {name!r}"
        files = [file for layer in layers for file in _as_sequence(layer.get(FILES, ()))]
        not_macros = {FILES, STEPS, COMMAND, *self.steps}
        macros = {k: v for layer in layers for k, v in layer.items() if k not in not_macros}
        variables = {**variables, "cell": "$cell"}  # known when the step runs
        return Step(
            name,
            _value(COMMAND, layers),
            tuple(_filled(files, variables, where)),
            _filled(macros, variables, where),
        )


def _layers(setting: Setting) -> list[Layer]:
    """Flattens a setting; later layers win."""
    if isinstance(setting, Mapping):
        return [setting]
    return [layer for part in setting for layer in _layers(part)]


def _value(key: str, layers: Sequence[Layer]) -> Any:
    """Returns the value that the last layer with this key has; None if there is none."""
    return next((layer[key] for layer in reversed(layers) if key in layer), None)


def _by_value(values: Axis) -> dict[str, list[Layer]]:
    """Returns the layers of each value of an axis."""
    return dict(_values(values))


def _values(values: Axis) -> Iterator[tuple[str, list[Layer]]]:
    if isinstance(values, Mapping):
        yield from ((str(value), _layers(setting)) for value, setting in values.items())
        return
    for value in values:
        if isinstance(value, Mapping | list | tuple):
            yield from _values(value)
        else:
            yield str(value), []


def _as_sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _matches(chosen: Mapping[str, str], rule: Rule) -> bool:
    return all(
        any(
            chosen[axis] != value[1:] if value.startswith("!") else chosen[axis] == value
            for value in map(str, _as_sequence(values))
        )
        for axis, values in rule.items()
    )


def _filled(value: Any, variables: Mapping[str, str], where: str) -> Any:
    """Replaces `$NAME` in all texts of `value`."""
    if isinstance(value, str):
        try:
            return string.Template(value).substitute(variables)
        except KeyError as error:
            known = ", ".join(sorted(variables))
            raise UserError(
                f"{where}: {value!r}: there is no ${error.args[0]}; available: {known}"
            ) from error
        except ValueError as error:
            raise UserError(f"{where}: {value!r}: a $ without a name; write $$ for one") from error
    if isinstance(value, Mapping):
        return {key: _filled(item, variables, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, variables, where) for item in value]
    return value


def _digest(steps: Sequence[Step], folders: tuple[str, ...]) -> str:
    """Hashes the steps' names, commands and bindings; how gin files say them does not matter."""
    content = [
        (step.name, step.command, bindings.of_step(step.files, step.arguments("$cell"), folders))
        for step in steps
    ]
    return hashlib.sha256(bindings.digestible(content).encode()).hexdigest()[:12]
