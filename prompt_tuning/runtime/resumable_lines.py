"""Writes JSON lines such that a killed run can resume."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from prompt_tuning.errors import UserError
from prompt_tuning.runtime import distributed, lock
from prompt_tuning.runtime.files import json_line

Line = Mapping[str, Any]


def digest(*parts: Any) -> str:
    """Digest of all that determines the lines: objects whose `repr` is the same in each process."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def write(
    path: os.PathLike,
    key: str,
    count: int,
    step: int,
    lines: Callable[[int, int], Iterable[Line]],
) -> None:
    """Writes `count` lines in steps; resumes after the last complete line of a run with `key`.

    Lines go to "PATH.KEY.part", which is renamed to `path` at the end. An interrupted step is
    computed again, so that all batches equal those of an uninterrupted run. In a multi-process run
    all processes compute, and process 0 alone reads and writes.

    Args:
      path: local file.
      key: digest of all that determines the lines.
      count: number of lines.
      step: number of lines that are computed together.
      lines: function from the first line and the end (exclusive) to the lines' contents.

    Raises:
      UserError: if another run is writing the same lines.
    """
    path, main = Path(path), distributed.is_main()
    part = path.with_name(f"{path.name}.{key}.part")
    if main:
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(part if main else os.devnull, "ab") as file:
        if main:
            _lock(file, part)
        done = distributed.of_main(_whole_lines(part) if main else 0)
        if done:
            print(f"resuming at line {done + 1} of {count}", flush=True)
        with tqdm(
            initial=done,
            total=count,
            unit="text",
            disable=None if main else True,
            dynamic_ncols=True,
        ) as bar:
            for start in range(done // step * step, count, step):
                missing = list(lines(start, min(start + step, count)))[max(done - start, 0) :]
                file.write(b"".join(map(json_line, missing)))
                file.flush()
                bar.update(len(missing))
        if main:
            part.replace(path)  # before another run can lock it


def _lock(file: BinaryIO, part: Path) -> None:
    """Locks the open file of a part until it is closed.

    Raises:
      UserError: if another run writes it, or has just renamed it.
    """
    taken = lock.take(file, part) and part.exists()
    if not (taken and os.path.samestat(part.stat(), os.fstat(file.fileno()))):
        raise UserError(f"{part}: another run is writing it; wait for that, or set another folder")


def _whole_lines(part: Path) -> int:
    """Counts the complete lines, and cuts off an incomplete one."""
    if not part.exists():
        return 0
    with part.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
    return content.count(b"\n")
