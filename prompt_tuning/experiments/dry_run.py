"""Checks every cell of an experiment without running one: settings, shapes, shardings, data."""

import copy
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from prompt_tuning.cli import gin_command, gin_parsing
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import bindings
from prompt_tuning.experiments.grid import Cell, Experiment, Step
from prompt_tuning.experiments.wording import counted
from prompt_tuning.model import summary
from prompt_tuning.runs import checks, ensemble
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.train import train
from prompt_tuning.runtime.files import is_remote

FUNCTIONS: Mapping[str, Callable] = {
    "train": train,
    "eval": evaluate,
    "ensemble": ensemble.evaluate,
}
_plan = functools.cache(summary.plan)


def check(experiment: Experiment, cells: Sequence[Cell], devices: int | None = None) -> None:
    """Prints each cell's digest and name, and what each step trains, with its command.

    Data and backbones are checked last, since a grid may be listed on a machine without them.

    Args:
      experiment: The experiment of the cells.
      cells: Cells to check.
      devices: Number of devices to simulate, before JAX starts any; None for those of this host.

    Raises:
      UserError: naming the first cell whose settings, shapes or data are wrong.
    """
    if devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    to_check: dict[str, tuple[str, Callable[[Step], None], Step]] = {}
    for cell in cells:
        print(f"{cell.digest} {cell.name}")
        folder = str(experiment.cell_folder(cell))
        for step in cell.steps:
            where = f"cell {cell.name}, step {step.name}"
            try:
                text = _plan(**planned(step))
            except ValueError as error:
                raise UserError(f"{where}: {gin_parsing.one_line(error)}") from error
            for names, check_files in _CHECKS.items():
                to_check.setdefault(_key(names, step), (where, check_files, step))
            trained = next(line for line in text.splitlines() if line.startswith("trained "))
            words = ["python", "-m", f"prompt_tuning.{step.command}", *step.arguments(folder)]
            print(
                f"  {step.name}: {' '.join(trained.split())}\n    {shlex.join(words)}", flush=True
            )
    print(f"{experiment.name}: {counted(len(cells), 'cell')}", flush=True)
    for where, check_files, step in to_check.values():
        try:
            check_files(step)
        except (ValueError, OSError) as error:
            raise UserError(f"{where}: {gin_parsing.one_line(error)}") from error


def planned(step: Step) -> dict[str, Any]:
    """Returns the arguments of `summary.plan` for the step's command.

    Raises:
      UserError: naming the file, parameter or macro that is wrong.
    """
    return gin_command.planned(FUNCTIONS[step.command], summary.plan, *_gin_of(step))


def check_data(step: Step) -> None:
    """Checks that the step finds its data, with the splits that it needs.

    Raises:
      UserError: naming what is wrong.
    """
    arguments = _arguments(step, needed="data")
    data = arguments["data"]
    if step.command == "train":
        names = ("fit", "data", "layout", "eval_batch_size", "seed")
        checks.training(**{name: arguments[name] for name in names})
        data.train_batches(0, positions=arguments["method"].positions, multiple=1)
    else:
        checks.split(arguments.get("split", "test"), data.splits)


def check_backbone(step: Step) -> None:
    """Checks that there is something at the step's INITIAL_CHECKPOINT_PATH, unless it is remote.

    Raises:
      UserError: if there is nothing.
    """
    path = _arguments(step, needed="initial_checkpoint")["initial_checkpoint"]
    if not is_remote(path) and not Path(path).expanduser().exists():
        raise UserError(f"INITIAL_CHECKPOINT_PATH = {path!r}: no such file or folder")


# Checks by the arguments that they depend on.
_CHECKS: Mapping[tuple[str, ...], Callable[[Step], None]] = {
    ("data", "fit"): check_data,
    ("initial_checkpoint",): check_backbone,
}


def _gin_of(step: Step) -> tuple[list[str], list[str]]:
    """Returns the gin files and bindings of the step's command."""
    flags = gin_parsing.expand_gin_flags(step.arguments("CELL"))
    pairs = [flag.partition("=") for flag in flags]
    files, statements = (
        [value for name, _, value in pairs if name == flag]
        for flag in ("--gin_file", "--gin_bindings")
    )
    return files, statements


def _arguments(step: Step, needed: str) -> dict[str, Any]:
    """Returns the arguments of the step's command, without other files than those of `needed`."""
    unneeded = [name for name in gin_command.NOT_FOR_A_DRY_RUN if name != needed]
    bound = gin_parsing.parse(FUNCTIONS[step.command], *_gin_of(step), unneeded)
    return copy.deepcopy({name: bound[name] for name in bound if name not in unneeded})


def _key(names: Sequence[str], step: Step) -> str:
    """Returns a text that is the same for steps whose arguments `names` are the same."""
    bound = bindings.of_step(step.files, step.arguments("$cell"), tuple(gin_parsing.gin_folders()))
    function = FUNCTIONS[step.command].__name__
    used: dict[str, Any] = {}
    for name in names:
        used |= bindings.reachable(bound, f"{function}.{name}")
    used.pop("RANDOM_SEED", None)  # of the order of rows: whether they can be read is the same
    return bindings.digestible([step.command, used])
