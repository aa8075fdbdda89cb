"""The core never imports TensorFlow, SeqIO or gin: they come in at the edges."""

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "seqio", "gin", "matplotlib", "torch", "transformers", "peft", "qwix")
CORE = (
    "prompt_tuning",
    "prompt_tuning.adapters",
    "prompt_tuning.analysis.curves",
    "prompt_tuning.analysis.neighbours",
    "prompt_tuning.analysis.similarity",
    "prompt_tuning.serving.bank",
    "prompt_tuning.checkpoint.backbone",
    "prompt_tuning.checkpoint.formats.huggingface",
    "prompt_tuning.exchange.peft_layers",
    "prompt_tuning.checkpoint.prompts",
    "prompt_tuning.checkpoint.run",
    "prompt_tuning.checkpoint.formats.t5x",
    "prompt_tuning.convert",
    "prompt_tuning.pretraining.mixture",
    "prompt_tuning.serving.task_rows",
    "prompt_tuning.decoding",
    "prompt_tuning.demo",
    "prompt_tuning.runtime.distributed",
    "prompt_tuning.experiments.results.plot",
    "prompt_tuning.inspect",
    "prompt_tuning.training.loss",
    "prompt_tuning.methods",
    "prompt_tuning.training.optim",
    "prompt_tuning.analysis.parameters",
    "prompt_tuning.model.params",
    "prompt_tuning.recycle",
    "prompt_tuning.serving.model",
    "prompt_tuning.sharding",
    "prompt_tuning.t5",
    "prompt_tuning.training.step",
    "prompt_tuning.trainer",
    "prompt_tuning.transfer",
)

# Prints "MODULE PACKAGE" for each heavy package, beside the core module that brought it.
PROGRAM = """
import importlib, sys
known = set()
for module in sys.argv[2:]:
    importlib.import_module(module)
    for package in sys.argv[1].split(","):
        if package in sys.modules and package not in known:
            known.add(package)
            print(module, package)
"""


def brought_by(modules: tuple[str, ...], packages: tuple[str, ...]) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, ",".join(packages), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_core_imports_nothing_heavy():
    assert brought_by(CORE, HEAVY) == []


@pytest.mark.parametrize("package", ["jax", "numpy"])
def test_package_itself_imports_nothing(package):
    assert brought_by(("prompt_tuning",), (package,)) == []


def test_heavy_imports_are_seen():
    assert brought_by(("json", "colorsys"), ("colorsys",)) == ["colorsys colorsys"]
