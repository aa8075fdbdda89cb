"""Commands that compute restart with huge pages, once, as the same process."""

import os
import signal
import subprocess
import sys

import pytest

from prompt_tuning.runtime import huge_pages
from prompt_tuning.runtime.huge_pages import TUNABLES

OTHER = "glibc.malloc.hugetlb=2"
# Stands for a command that computes; the package is the real one.
COMMAND = """
import os, signal, sys
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:], flush=True)
if "--wait" in sys.argv:
    signal.pause()
sys.exit(7)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of what a restart needs, whose kernel has huge pages whatever this one has."""
    folder = tmp_path / "prompt_tuning"
    (folder / "runtime").mkdir(parents=True)
    source = huge_pages.__file__
    with open(source) as file:
        text = file.read().replace(str(huge_pages._KERNEL), str(tmp_path / "enabled"))
    (folder / "runtime" / "huge_pages.py").write_text(text)
    (folder / "runtime" / "__init__.py").touch()
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    line = "from prompt_tuning.runtime import huge_pages\nhuge_pages.restart_command()\n"
    (folder / "__init__.py").write_text(line)
    for name in ("train", "convert"):
        (folder / f"{name}.py").write_text(COMMAND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    names = ("GLIBC_TUNABLES", huge_pages.VARIABLE, "PYTHONPATH")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=inherited | environment, **pipes)


needs_glibc = pytest.mark.skipif(
    not huge_pages._is_new_glibc(), reason="the C library has no huge pages"
)


@needs_glibc
def test_a_command_restarts_as_the_same_process(package):
    process = start("-m", "prompt_tuning.train", "--gin.X=[1, 2]", "--wait")
    line = process.stdout.readline()
    assert line == f"{TUNABLES} {process.pid} ['--gin.X=[1, 2]', '--wait']\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert err.count("\n") == 1 and "set PROMPT_TUNING_HUGE_PAGES=0" in err


@needs_glibc
@pytest.mark.parametrize(
    ("command", "environment", "tunables"),
    [
        (("-m", "prompt_tuning.train"), {}, TUNABLES),
        (("-X", "dev", "-m", "prompt_tuning.train"), {}, TUNABLES),
        (
            ("-m", "prompt_tuning.train"),
            {"GLIBC_TUNABLES": "glibc.a=1"},
            f"glibc.a=1:{TUNABLES}",
        ),
        (("-m", "prompt_tuning.train"), {"GLIBC_TUNABLES": OTHER}, OTHER),
        (("-m", "prompt_tuning.train"), {"PROMPT_TUNING_HUGE_PAGES": "0"}, None),
        (("-m", "prompt_tuning.convert"), {}, None),
        (("-m", "prompt_tuning.convert", "prompt_tuning.train"), {}, None),
        (("-c", f"import prompt_tuning.runtime{COMMAND}"), {}, None),
    ],
)
def test_which_commands_restart(package, command, environment, tunables):
    process = start(*command, **environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert out.split()[0] == str(tunables)
    assert ("restarting" in err) is (tunables not in (None, environment.get("GLIBC_TUNABLES")))


@pytest.mark.parametrize("kernel", ["always madvise [never]\n", None])
def test_nothing_happens_where_the_kernel_has_none(package, kernel):
    if kernel is None:
        (package / "enabled").unlink()
    else:
        (package / "enabled").write_text(kernel)
    out, err = start("-m", "prompt_tuning.train").communicate(timeout=60)
    assert out.split()[0] == "None" and err == ""
