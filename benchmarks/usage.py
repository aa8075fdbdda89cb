"""What work takes of its process. Imports no package, for the peer's scripts use it too."""

import resource
import time
from collections.abc import Callable
from typing import NamedTuple


class Usage(NamedTuple):
    """Seconds, CPU seconds in the kernel and minor page faults; the latter two of all threads."""

    seconds: float
    system_seconds: float
    minor_faults: float


def of(work: Callable[[], object], times: int = 1) -> Usage:
    """The usage of a call, the mean of `times` in a row."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(times):
        work()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, faults = after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
    return Usage(seconds / times, system / times, faults / times)
