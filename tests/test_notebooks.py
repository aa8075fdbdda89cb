"""The notebooks: each runs from top to bottom in a fresh process, without network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# What must hold at the end of each, in the names of its cells.
SLOW = {"many_tasks", "quickstart", "scaling_curve", "your_own_csv"}
CONCLUSIONS = {
    "quickstart": "curve[-1][1] > curve[0][1]",
    "load_checkpoints": "len({model.fingerprint for model in models.values()}) == 1",
    "your_own_csv": "result.summary['prompt_accuracy'] > 0.2 + result.summary['majority_accuracy']",
    "many_tasks": "all(a > b for a, b in zip(with_prompts[:2], alone, strict=False))",
    "read_a_prompt": "nearest['neighbours'][0]['tokens'][0] == '▁business'",
    "scaling_curve": "'6 cells: 6 done' in printed",
}
# Arguments: a notebook, and what must be true in the end. Figures must have labelled axes.
PROGRAM = """
import json, socket, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

def refuse(*_):
    raise AssertionError("a notebook asks for the network")

def show():
    for number in plt.get_fignums():
        figure = plt.figure(number)
        for axes in figure.axes:
            named = axes.get_xlabel() and axes.get_ylabel()
            assert named or not axes.axison or axes.get_label() == "<colorbar>", axes
        figure.savefig(f"{number}.png")

socket.socket.connect = refuse
plt.show = show
path, expression = sys.argv[1:]
cells = json.load(open(path, encoding="utf-8"))["cells"]
names = {"__name__": "__main__"}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
assert eval(expression, names), expression
"""


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
        for path in NOTEBOOKS
    ],
)
def test_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, CONCLUSIONS[path.stem]],
        cwd=tmp_path,
        # Unlike most tests (conftest.py), they compute more than they compile.
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_no_outputs(path):
    for cell in code_cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("there", [True, False])
def test_first_cell_installs_what_is_missing(path, there, monkeypatch):
    calls = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there or None)
    monkeypatch.setattr("subprocess.run", lambda command, check: calls.append(command))
    exec("".join(code_cells(path)[0]["source"]), {})
    assert calls == ([] if there else [[sys.executable, "-m", "pip", "install", ".."]])
