"""Imports run one way, and the core never imports TensorFlow, SeqIO or gin."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "tensorflow",
    "seqio",
    "gin",
    "matplotlib",
    "torch",
    "transformers",
    "peft",
    "qwix",
    "t5x",
)
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
    "prompt_tuning.runtime.distributed",
    "prompt_tuning.experiments.results.plot",
    "prompt_tuning.inspect",
    "prompt_tuning.training.loss",
    "prompt_tuning.methods",
    "prompt_tuning.training.optim",
    "prompt_tuning.analysis.parameter_counts",
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
    assert brought_by(("prompt_tuning", "prompt_tuning.serving"), (package,)) == []


def test_heavy_imports_are_seen():
    assert brought_by(("json", "colorsys"), ("colorsys",)) == ["colorsys colorsys"]


PACKAGE = Path(__file__).parents[1] / "prompt_tuning"
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def table() -> dict[str, set[str]]:
    """The packages of docs/architecture.md in their order, with those that each may import."""
    section = PAGE.read_text().split("## Packages")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `?(\w+)`? \| (.*) \| ?(.*?) ?\|$", section, re.M)
    packages = {name: set(allowed.split(", ")) - {""} for name, _, allowed in rows[1:]}
    commands = re.findall(
        r"`(\w+)`", next(contents for name, contents, _ in rows if name == "commands")
    )
    del packages["commands"]
    return packages | {name: set(packages) for name in commands}


def imported(source: str) -> set[str]:
    """The packages that a module of this project imports, at module level or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "prompt_tuning":
            names |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prompt_tuning."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            names |= {part[1] for part in parts if part[0] == "prompt_tuning" and len(part) > 1}
    return names


def forbidden(package: str, source: str) -> set[str]:
    return imported(source) - table()[package] - {package, "errors"}


def test_imports_keep_to_the_table():
    wrong = {}
    for file in PACKAGE.rglob("*.py"):
        package = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if package != "__init__" and (actual := forbidden(package, file.read_text())):
            wrong[str(file.relative_to(PACKAGE))] = actual
    assert wrong == {}


def test_t5x_and_in_t5x_are_imported_by_in_t5x_alone():
    for file in PACKAGE.rglob("*.py"):
        source = file.read_text()
        t5x = re.search(r"^\s*(from|import) (t5x|airio|jestimator)\b", source, re.MULTILINE)
        if PACKAGE / "in_t5x" not in file.parents:
            assert not t5x and "in_t5x" not in imported(source), file
        elif file.stem == "variables":
            assert not t5x


def test_the_order_of_the_table_has_no_circle():
    above: set[str] = set()
    for package, allowed in table().items():
        assert allowed <= above | {package}, package
        above.add(package)


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("t5", "from prompt_tuning.training import loss"),
        ("cli", "def f():\n    from prompt_tuning.data.quiet import seqio"),
        ("methods", "import prompt_tuning.runs.train"),
        ("checkpoint", "from prompt_tuning import trainer"),
    ],
)
def test_a_forbidden_import_is_seen(package, line):
    assert forbidden(package, line)
