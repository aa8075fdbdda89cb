"""Each command that converts or reads files starts as a process of its own."""

import subprocess
import sys

import pytest

COMMANDS = (
    "adapters",
    "convert",
    "inspect",
    "recycle",
    "report",
    "transfer",
    "analysis.curves",
    "analysis.neighbours",
    "analysis.similarity",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_starts_and_asks_for_its_flags(command):
    """A fresh process imports modules in an order that commands run in process do not test."""
    program = [sys.executable, "-m", f"prompt_tuning.{command}"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(("error: flag --", "error: give ", "error: usage: ")), done.stderr
    assert done.stderr.count("\n") == 1
