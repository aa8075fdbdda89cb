"""Runs a command of the package in this process: what it prints and its exit status."""

import runpy
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import gin
import pytest
from absl import flags
from absl.testing import flagsaver

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary


class Result(NamedTuple):
    status: int
    out: str
    err: str


def run(command: str | Callable, arguments: list[str], capsys, monkeypatch) -> Result:
    """`python -m COMMAND ARGUMENTS`, or a function that gin configures, through `cli.main`."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    known = set(flags.FLAGS)
    gin.clear_config()
    capsys.readouterr()
    try:
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_info:
            _main(command)
    finally:
        gin.clear_config()
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
    code = exit_info.value.code
    return Result(0 if code is None else code, *capsys.readouterr())


def _main(command: str | Callable) -> None:
    if callable(command):
        gin_command.main(command, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
    else:
        _as_main(command)


def _as_main(module: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
        runpy.run_module(module, run_name="__main__")


def assert_mistake(result: Result, part: str) -> None:
    """One line that has `part`, and status 2."""
    assert result.status == 2, result
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and part in lines[0], result.err
    assert "In call to configurable" not in lines[0]
