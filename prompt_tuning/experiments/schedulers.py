"""Which part of the cells a job of somebody's scheduler is to run."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prompt_tuning.errors import UserError

T = TypeVar("T")


def part(
    index: int | None, count: int | None, environ: Mapping[str, str] = os.environ
) -> tuple[int, int, str]:
    """This job's number from 0, how many jobs there are, and where that comes from.

    Args:
      index, count: as the flags say; None where they are not given.
      environ: where Slurm tells a job array's task, and Kubernetes an indexed job's completion. The
        latter does not tell how many there are: give `count`.

    Raises:
      UserError: for numbers that cannot be.
    """
    if index is not None:
        source = "--cell_index"
    elif "SLURM_ARRAY_TASK_ID" in environ:
        source = "SLURM_ARRAY_TASK_ID"
        index = _number(environ, source)
        if count is None:  # with a count the number is the part's, also of an array of some parts
            first = _number(environ, "SLURM_ARRAY_TASK_MIN", "0")
            index = (index - first) // _number(environ, "SLURM_ARRAY_TASK_STEP", "1")
            count = _number(environ, "SLURM_ARRAY_TASK_COUNT")
    elif count is not None and "JOB_COMPLETION_INDEX" in environ:
        source = "JOB_COMPLETION_INDEX"
        index = _number(environ, source)
    elif count is not None:
        raise UserError(
            f"--cell_count={count}: give --cell_index, from 0 (neither SLURM_ARRAY_TASK_ID nor "
            "JOB_COMPLETION_INDEX is set)"
        )
    else:
        return 0, 1, ""
    if count is None or not 0 <= index < count:
        raise UserError(
            f"{source}: part {index} of {'an unknown number' if count is None else count}; "
            "--cell_index must be from 0 to --cell_count less 1"
        )
    return index, count, source


def mine(cells: Sequence[T], index: int, count: int) -> list[T]:
    """Every `count`-th of the cells, so that each part has some of every size and method."""
    return list(cells[index::count])


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    value = environ.get(name, default)
    if not value.isdecimal():
        raise UserError(
            f"{name} = {value!r}: must be a whole number; or give --cell_index and --cell_count"
        )
    return int(value)
