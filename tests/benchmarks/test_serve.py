"""The server's benchmark runs, and finds what it looks for, with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"


@pytest.mark.slow
def test_the_benchmark_of_the_server(tmp_path):
    pytest.importorskip("fastapi")
    file = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), "--smoke", f"--json={file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    for key in ("churn_compilations", "churn_wrong", "random_settings_compilations"):
        assert found[key] == 0, found
    assert found["overload_other_statuses"] == 0
    assert found["two_replicas_failures"] <= found["two_replicas_in_flight"]
    for key in ("clients_over_sequential", "server_over_direct", "mixed_over_split"):
        assert found[key] > 0
