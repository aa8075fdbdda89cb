"""Gin files of earlier versions are read by today's names."""

import re
from pathlib import Path

import pytest

from prompt_tuning.cli import gin_history
from prompt_tuning.runs.train import train
from prompt_tuning.testing import run_command

CONFIGS = Path(__file__).parents[2] / "configs"
OLD_CONFIG = Path(__file__).parents[1] / "fixtures" / "config_of_an_earlier_version.gin"


def test_a_run_of_an_earlier_version_is_planned():
    """Its config.gin imports modules that have moved, and configures training in `train.train`."""
    files = [f"--gin_file={OLD_CONFIG}", "--dry_run", "--gin.TRAIN_STEPS=7"]
    result = run_command(train, *files)
    assert (result.status, result.err) == (0, "")
    assert "loop.Fit.total_steps = %TRAIN_STEPS" in result.out
    assert re.search(r"^trained +1 leaves +1,024 parameters", result.out, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.gin")), ids=lambda path: path.stem)
def test_files_of_this_version_stay(path):
    text = path.read_text()
    assert gin_history.rewritten(text) == text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("include 'models/t5.gin'", "include 'common/t5.gin'"),
        (
            "from prompt_tuning.data import benchmarks",
            "from prompt_tuning.data.catalogue import glue",
        ),
        ("  score = @benchmarks.scores", "  score = @glue.scores"),
        ("phases = (@first/pretraining.Phase(),)", "phases = (@first/mixture.Phase(),)"),
        ("suite.suite.score = @benchmarks.scores", "suite.train_tasks.score = @glue.scores"),
        ("LAYOUT = @layout.layout()", "LAYOUT = @layout.choose()"),
        ("ensemble.ensemble.method = %METHOD\n", ""),
        ("TRAIN_STEPS_RELATIVE = 80", "TRAIN_STEPS = 80"),
    ],
)
def test_line(old, new):
    assert gin_history.rewritten(old) == new


def test_settings_of_training():
    text = (
        "from __gin__ import dynamic_registration\ncb/train.train.keep = 2\ntrain.train.keep = 3\n"
    )
    lines = gin_history.rewritten(text).splitlines()
    assert lines[0] == "from __gin__ import dynamic_registration"
    assert lines[-4:] == [
        "cb/loop.Fit.keep = 2",
        "loop.Fit.keep = 3",
        "",
        "train.train.fit = @loop.Fit()",
    ]
