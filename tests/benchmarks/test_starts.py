"""Every benchmark starts: what it imports and the flags that it defines exist."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    path.name for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()
)
NEED_PEER = {path for path in SCRIPTS if path.endswith("_torch.py")}
WITHOUT_FLAGS = {"first_step.py"}


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - NEED_PEER - WITHOUT_FLAGS))
def test_help(script):
    command = [sys.executable, FOLDER / script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    assert "Traceback" not in done.stderr
