"""Restarts a command so that the C library's allocator uses huge pages; imports nothing large.

On CPUs, XLA allocates its buffers anew at each execution, and glibc gives large ones back to the
kernel at once. Faulting in pages of 4 KiB then takes a quarter to a third of a step. With huge
pages, one heap for all threads and nothing given back, no faults are left. glibc reads its tunables
when a process starts, so a command replaces itself, once, before it imports JAX.
"""

import os
import re
import sys
from pathlib import Path

VARIABLE = "PROMPT_TUNING_HUGE_PAGES"  # 0 switches them off
TUNABLE = "glibc.malloc.hugetlb"
_KEPT = 2**34  # bytes; no buffer is larger, and no more than that is free at a time
TUNABLES = (
    f"{TUNABLE}=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold={_KEPT}"
    f":glibc.malloc.trim_threshold={_KEPT}"
)
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_FIRST_GLIBC = (2, 35)  # with the tunable
_COMMANDS = frozenset(
    f"prompt_tuning.{name}"
    for name in (
        "demo",
        "ensemble",
        "eval",
        "experiments",
        "infer",
        "pretrain",
        "serve",
        "suite",
        "train",
    )
)


def restart_command() -> None:
    """Restarts `python -m prompt_tuning.COMMAND` with huge pages, from the package's import.

    Nothing happens in notebooks, under pytest, in scripts that import the package, and where
    `tunables` has nothing to set. The process keeps its id, its parent and its signals.
    """
    if sys.argv[:1] != ["-m"]:  # it is while Python looks for the module that it will run
        return
    if sys.orig_argv[sys.orig_argv.index("-m") + 1] in _COMMANDS:
        restart()


def restart() -> None:
    """Replaces this process by the same command with huge pages, if `tunables` has some to set."""
    value = tunables()
    if value is None:
        return
    print(
        f"restarting with huge pages, which are faster on CPUs (GLIBC_TUNABLES={value}); set "
        f"{VARIABLE}=0 to turn this off",
        file=sys.stderr,
        flush=True,
    )
    environment = os.environ | {"GLIBC_TUNABLES": value}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def tunables() -> str | None:
    """The value of GLIBC_TUNABLES to restart with; None if it is set, unwanted or has no effect."""
    present = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in present or os.environ.get(VARIABLE) == "0" or not _has_huge_pages():
        return None
    return ":".join(filter(None, [present, TUNABLES]))


def _has_huge_pages() -> bool:
    """Whether kernel and C library can give huge pages to a process that asks for them."""
    if not _is_new_glibc() or not _KERNEL.exists():
        return False
    kernel = _KERNEL.read_text()
    return "[madvise]" in kernel or "[always]" in kernel


def _is_new_glibc() -> bool:
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
        return False
    version = re.search(r"(\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
    return version is not None and tuple(map(int, version.groups())) >= _FIRST_GLIBC
