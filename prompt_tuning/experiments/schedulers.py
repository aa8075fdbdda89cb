"""Finds out which part of the cells this job of a cluster's scheduler runs."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prompt_tuning.errors import UserError

T = TypeVar("T")


def part(
    index: int | None, count: int | None, environ: Mapping[str, str] = os.environ
) -> tuple[int, int, str]:
    """Returns this job's index from 0, the number of jobs, and the name of the source of both.

    Args:
      index, count: Values of the flags; None where they are not set.
      environ: Environment variables, which name the task of a Slurm job array, or the completion
        index of a Kubernetes indexed job. Kubernetes does not say how many there are: set `count`.

    Raises:
      UserError: for an index that is not below the count, or an incomplete specification.
    """
    if index is not None:
        source = "--cell_index"
    elif "SLURM_ARRAY_TASK_ID" in environ:
        source = "SLURM_ARRAY_TASK_ID"
        index = _number(environ, source)
        if count is None:  # with --cell_count the task's number is the part, even in a sparse array
            first = _number(environ, "SLURM_ARRAY_TASK_MIN", "0")
            index = (index - first) // _number(environ, "SLURM_ARRAY_TASK_STEP", "1")
            count = _number(environ, "SLURM_ARRAY_TASK_COUNT")
    elif count is not None and "JOB_COMPLETION_INDEX" in environ:
        source = "JOB_COMPLETION_INDEX"
        index = _number(environ, source)
    elif count is not None:
        raise UserError(
            f"--cell_count={count}: set --cell_index, from 0 (neither SLURM_ARRAY_TASK_ID nor "
            "JOB_COMPLETION_INDEX is set)"
        )
    else:
        return 0, 1, ""
    if count is None or not 0 <= index < count:
        raise UserError(
            f"{source}: part {index} of {'an unknown number' if count is None else count}; "
            "--cell_index must be from 0 to --cell_count - 1"
        )
    return index, count, source


def mine(cells: Sequence[T], index: int, count: int) -> list[T]:
    """Returns every `count`-th cell, so that each part has some of every size and method."""
    return list(cells[index::count])


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    value = environ.get(name, default)
    if not value.isdecimal():
        raise UserError(
            f"{name} = {value!r}: must be a whole number; or set --cell_index and --cell_count"
        )
    return int(value)
