"""`python -m prompt_tuning.plan`: what a step needs, from shapes alone."""

import dataclasses
import json
import re
import signal
import subprocess
import sys

import pytest

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.runs import plan as plan_run
from prompt_tuning.runs.plan import MACHINES
from prompt_tuning.t5 import T5Config
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor

CONFIG = T5Config(512, 64, 4, 16, 128, 2, 2, dropout_rate=0.1, frozen_dtype="bfloat16")


def planned(config: T5Config, num_partitions: int, **settings) -> dict:
    return plan_run.measure_step(
        config=config,
        method=PromptTuning(4, initializer=Uniform()),
        layout=sharding.layout(num_partitions),
        lengths={"inputs": 16, "targets": 4},
        batch_size=8,
        optimizer=adafactor,
        loss=Loss(),
        **settings,
    )


@pytest.fixture(autouse=True)
def _no_machines(monkeypatch):
    monkeypatch.setattr(plan_run, "MACHINES", {})


def test_weights_are_divided_over_the_partitions(tmp_path, capsys):
    actual = planned(CONFIG, 4, json_file=str(tmp_path / "plan.json"))
    assert json.loads((tmp_path / "plan.json").read_text()) == actual
    # By hand: matrices in bfloat16; norms, relative positions and the prompt in float32.
    attention, mlp = 4 * 64 * 64, 3 * 64 * 128
    matrices = 2 * 512 * 64 + 2 * (attention + mlp) + 2 * (2 * attention + mlp)
    scales = 64 * (2 * 2 + 2 * 3 + 2)
    assert actual["weight_bytes_total"] == 2 * matrices + 4 * (scales + 2 * 4 * 32 + 4 * 64)
    assert (actual["devices"], actual["mesh"]) == (8, {"data": 2, "model": 4})
    assert actual["weight_shards"] == 4
    share = actual["weight_bytes_total"] / 4
    assert share <= actual["weight_bytes_per_device"] <= 1.1 * share
    assert actual["collectives"]["all-reduce"] > 0
    assert "all-reduce" in capsys.readouterr().out


@pytest.mark.slow
def test_operations_are_those_of_all_layers():
    """A loop's body is not counted once; a batch's operations are divided over all devices."""
    plain = planned(CONFIG, 1)["flops_per_device"]
    scanned = planned(dataclasses.replace(CONFIG, scan_layers=True), 1)["flops_per_device"]
    assert scanned == plain > 0


def test_collectives_are_counted_by_kind():
    hlo = """
      %a = (f32[8,16]{1,0}, f32[]) all-reduce(%x, %y), replica_groups={}
      %b = f32[8]{0} all-gather-start(%y), dimensions={0}
      %c = f32[8]{0} all-gather-done(%b)
      %d = f32[8]{0} add(%all-reduce.1, %y)
    """
    assert plan_run.collectives(hlo) == {"all-reduce": 1, "all-gather": 1}


@pytest.mark.slow
def test_a_machine_needs_as_few_partitions_as_fit(monkeypatch, capsys):
    """Of two, four and sixteen devices; eight are simulated."""
    alone = planned(CONFIG, 1)
    weights, needed = alone["weight_bytes_total"], alone["bytes_per_device"]
    machines = {
        "large": (2, 2 * needed),
        "small": (4, weights),
        "tiny": (4, 10),
        "far": (16, needed),
        "odd": (5, needed),
    }
    monkeypatch.setattr(plan_run, "MACHINES", machines)
    actual = planned(CONFIG, 1)["machines"]
    assert actual.keys() == machines.keys() - {"far"}
    assert (actual["large"]["num_partitions"], actual["large"]["fits"]) == (1, True)
    # Half a device is left to activations, which are more than that here.
    assert actual["small"]["num_partitions"] > 1
    assert (actual["tiny"]["num_partitions"], actual["tiny"]["fits"]) == (4, False)
    assert actual["tiny"]["bytes_per_device"] < needed
    assert actual["odd"] is None
    # Each layout is compiled once; "small" and "tiny" have one in common.
    compiled = re.findall(r"compiling for (\d+) devices", capsys.readouterr().err)
    assert compiled == ["8", "8", "2", "4"]


@pytest.mark.slow
def test_the_command(tmp_path):
    """The paper's method and the run's file need not be named."""
    model = ["--gin_file=models/demo.gin", "--gin.MODEL_PRESET=nano", "--gin.BATCH_SIZE=4"]
    sizes = ["--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}", "--gin.PROMPT_LENGTH=4"]
    program = [sys.executable, "-m", "prompt_tuning.plan", *model, *sizes]
    flags = ["--devices", "4", f"--json={tmp_path}/plan.json"]
    done = subprocess.run([*program, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "plan.json").read_text())
    assert (result["devices"], result["mesh"]) == (4, {"data": 4, "model": 1})
    assert result["machines"].keys() == MACHINES.keys()
    assert result["machines"]["v5e-256"] is None  # four rows do not divide over it
    assert result["machines"]["v4-8"]["fits"]


@pytest.mark.slow
def test_sigterm_ends_it_while_it_compiles():
    model = ["--gin_file=models/t5gemma_s_s.gin", "--gin.INITIAL_CHECKPOINT_PATH=none"]
    program = [sys.executable, "-m", "prompt_tuning.plan", *model, "--devices=1"]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "compiling for 1 devices: data 1, model 1\n"
        process.terminate()
        assert process.communicate(timeout=10)[1] == ""  # the whole step takes longer
        assert process.returncode == -signal.SIGTERM
