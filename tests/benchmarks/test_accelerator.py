"""The benchmark for an accelerator, with tiny shapes; it needs few packages and no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPT = FOLDER / "accelerator.py"
# Packages of the project, or of its peer, that a machine with a card may not have.
BLOCKED = (
    "datasets",
    "gin",
    "matplotlib",
    "peft",
    "pyarrow",
    "rouge_score",
    "sacrebleu",
    "seqio",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
)
# Runs a script of the folder as `python SCRIPT FLAG ...` does, without these and without a network.
PROGRAM = """
import runpy, socket, sys
blocked, sys.argv = sys.argv[1].split(","), sys.argv[2:]

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        if name.partition(".")[0] not in blocked:
            return self.finder.find_spec(name, *rest)

    def __getattr__(self, name):
        return getattr(self.finder, name)

def refuse(*args):
    raise OSError("no network")

sys.meta_path[:] = map(Without, sys.meta_path)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
socket.socket.connect = refuse
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def accelerator():
    sys.path.insert(0, str(FOLDER))
    try:
        import accelerator
    finally:
        sys.path.remove(str(FOLDER))
    return accelerator


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """What `accelerator.py --smoke` prints, and the file that it writes."""
    path = tmp_path_factory.mktemp("accelerator") / "found.json"
    command = [sys.executable, "-c", PROGRAM, ",".join(BLOCKED), str(SCRIPT), "--smoke"]
    environment = os.environ | {"PROMPT_TUNING_HUGE_PAGES": "0"}
    done = subprocess.run(
        [*command, f"--json={path}"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.mark.slow
def test_every_part_is_measured(smoke):
    _, actual = smoke
    failed = {row["part"]: row["failed"] for row in actual["rows"] if "failed" in row}
    missing = "not installed: torch, transformers, peft"
    expected = {"ours_nano": "ValueError: ATTENTION = 'cudnn': needs a GPU"}
    expected |= dict.fromkeys(("peer_nano", "peer_generation"), missing)
    assert failed.keys() == expected.keys()
    assert all(failed[part].startswith(words) for part, words in expected.items())
    measured = [row for row in actual["rows"] if "failed" not in row]
    parts = {"rates", "ours_nano", "largest", "int8", "generation", "generation_int8"}
    assert {row["part"] for row in measured} == parts
    assert all(row["seconds"] > 0 for row in measured)
    steps = [row for row in measured if row.get("what") == "step"]
    assert [row["variant"] for row in steps] == ["einsum", "scan, remat full", "einsum, int8"]
    assert all(row["share_of_product_rate"] > 0 and row["bytes"] > 0 for row in steps)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_row(smoke):
    printed, actual = smoke
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    heads = 2
    rates = [row for row in actual["rows"] if row["part"] == "rates"]
    assert len(lines) == heads + len(actual["rows"]) - len(rates)
    assert "| step | nano | ours | einsum | 2 |" in printed


def test_operations_of_a_step(accelerator):
    # The compiler counts 121.6 G, elementwise operations included.
    flops = accelerator.step_flops(accelerator.preset("t5_1_1_small"), 8, 128, 8, 20)
    assert flops == pytest.approx(121.6e9, rel=0.05)


def test_speedup_is_that_of_the_best_of_each_side(accelerator):
    def row(side, variant, rate, **more):
        about = {"part": "p", "size": "xl", "side": side, "variant": variant, "batch": 16}
        return about | {"tokens_per_second": rate} | more

    rows = [
        row("ours", "einsum", 2.0),
        row("ours", "cudnn", 3.0),
        row("ours", "einsum, int8", 9.0),
        row("ours", "scan, remat full", 9.0, part="largest"),
        row("peer", "eager", 2.0),
        row("peer", "compiled", 1.0),
        row("ours", "einsum", 1.0, batch=32),
        {"part": "p", "size": "xl", "side": "peer", "batch": 32, "failed": "out of memory"},
    ]
    assert accelerator.speedups(rows) == {"xl, batch 16": 1.5}


ROW = "print('row {\"batch\": 1}', flush=True)"


@pytest.mark.parametrize(
    ("program", "last"),
    [
        (f"{ROW}; import time; time.sleep(60)", "stopped after 1 s"),
        (f"{ROW}; import subprocess; subprocess.run(['sleep', '60'])", "stopped after 1 s"),
        (f"print('chatter'); {ROW}; raise SystemExit(3)", "ended with status 3"),
        (ROW, None),
    ],
)
def test_a_part_that_ends_early_keeps_its_rows(accelerator, program, last):
    rows = list(accelerator.printed([sys.executable, "-c", program], 1))
    assert rows == [{"batch": 1}, *([{"failed": last}] if last else [])]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (ValueError(), "ValueError: "),
    ],
)
def test_a_failure_is_a_row(accelerator, error, words):
    assert accelerator.failed(error) == {"failed": words}
