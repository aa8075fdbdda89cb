"""Looks at every cell of an experiment without running one: settings, shapes, shardings."""

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from prompt_tuning.cli import gin_command, gin_parsing
from prompt_tuning.errors import UserError
from prompt_tuning.experiments.grid import Cell, Experiment, Step
from prompt_tuning.model import summary
from prompt_tuning.runs import ensemble
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.train import train

FUNCTIONS: Mapping[str, Callable] = {
    "train": train,
    "eval": evaluate,
    "ensemble": ensemble.evaluate,
}
_plan = functools.cache(summary.plan)


def check(experiment: Experiment, cells: Sequence[Cell], devices: int | None = None) -> None:
    """Prints of each cell its digest and name, and of each step what it trains and its command.

    Args:
      experiment: whose cells they are.
      cells: to look at.
      devices: how many to simulate, before JAX has any; None for those that are here.

    Raises:
      UserError: naming the first cell whose settings are wrong.
    """
    if devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    for cell in cells:
        print(f"{cell.digest} {cell.name}")
        folder = str(experiment.cell_folder(cell))
        for step in cell.steps:
            try:
                text = _plan(**planned(step))
            except ValueError as error:
                raise UserError(f"cell {cell.name}, step {step.name}: {error}") from error
            trained = next(line for line in text.splitlines() if line.startswith("trained "))
            words = ["python", "-m", f"prompt_tuning.{step.command}", *step.arguments(folder)]
            print(
                f"  {step.name}: {' '.join(trained.split())}\n    {shlex.join(words)}", flush=True
            )
    print(f"{experiment.name}: {len(cells)} cells")


def planned(step: Step) -> dict[str, Any]:
    """The arguments of `summary.plan` for the step's command.

    Raises:
      UserError: naming the file, parameter or macro that is wrong.
    """
    function, arguments = FUNCTIONS[step.command], step.arguments("CELL")
    given = [flag.partition("=") for flag in gin_parsing.expand_gin_flags(arguments)]
    files = [value for name, _, value in given if name == "--gin_file"]
    bindings = [value for name, _, value in given if name == "--gin_bindings"]
    return gin_command.planned(function, summary.plan, files, bindings)
