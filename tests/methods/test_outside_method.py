"""docs/add-a-method.md does what it says: its files lie outside the package, its commands run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

DOC = Path(__file__).parents[2] / "docs" / "add-a-method.md"
LEAF = "encoder/layers_2/steering/vector"
# What is learned does not matter here.
QUICK = (
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}",
    "--gin.BATCH_SIZE=64",
)
QUICK_TRAINING = ("--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.EVAL_BATCH_SIZE=64")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)


def run(command: str, folder: Path, *settings: str) -> None:
    """One of the page's commands, with settings of ours, in a process of its own."""
    python, *arguments = shlex.split(command.replace("\\\n", ""))
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *arguments, *QUICK, *settings],
        cwd=folder,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_page_tests_its_method(tmp_path, monkeypatch):
    """With the page's own test, in this process."""
    method, check = blocks("python")
    (tmp_path / "steering.py").write_text(method)
    monkeypatch.syspath_prepend(tmp_path)
    module: dict = {}
    exec(check, module)
    with jax.numpy_rank_promotion("allow"):  # a method of yours may add [D] to [B, T, D]
        module["test_contract"]()
    monkeypatch.delitem(sys.modules, "steering")


@pytest.mark.slow
def test_files_and_commands_of_the_page(tmp_path):
    (method, _), [settings] = blocks("python"), blocks("gin")
    assert len((method + settings).splitlines()) < 60
    (tmp_path / "steering.py").write_text(method)
    (tmp_path / "steering.gin").write_text(settings)
    train, evaluation = blocks("sh")[0].split("\n\n")

    run(train, tmp_path, *QUICK_TRAINING)
    model = tmp_path / "runs" / "steering"
    assert json.loads((model / "result.json").read_text())["trained_parameters"] == 256
    for which in ("best", "last"):
        leaves = load_file(model / f"trained_{which}.safetensors")
        assert {path: leaf.shape for path, leaf in leaves.items()} == {LEAF: (256,)}
    assert np.any(leaves[LEAF] != 0)  # where it starts
    assert "import steering" in (model / "config.gin").read_text()

    # A vector so large that all inputs look alike behind it.
    huge = 1e4 * np.random.default_rng(0).normal(size=256).astype(np.float32)
    save_file({LEAF: huge}, model / "trained_best.safetensors")
    run(evaluation, tmp_path)
    lines = (model / "test" / "demo_reviews-test-rank.jsonl").read_text().splitlines()
    scores = np.array([list(json.loads(line)["scores"].values()) for line in lines])
    assert len(scores) > 1
    np.testing.assert_allclose(scores, scores[:1].repeat(len(scores), axis=0), atol=0.02)
