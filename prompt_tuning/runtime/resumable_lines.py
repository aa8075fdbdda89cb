"""JSON lines that a killed run goes on with."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prompt_tuning.runtime import distributed

Line = Mapping[str, Any]


def digest(*parts: Any) -> str:
    """Of what the lines follow from: anything that has the same `repr` in another process."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def write(
    path: os.PathLike,
    key: str,
    count: int,
    step: int,
    lines: Callable[[int, int], Iterable[Line]],
) -> None:
    """Writes `count` lines in steps; goes on behind the last whole line of a run of the same key.

    A run writes to `path` with ".KEY.part" behind it, and renames that in the end. A step that was
    broken off is computed again, so that all batches are those of an undisturbed run. Of several
    processes the first alone reads and writes; all compute.

    Args:
      path: on a local disk.
      key: see `digest`.
      count: of all lines.
      step: lines that are computed at once.
      lines: from the first one and the one behind the last, to their contents.
    """
    path, main = Path(path), distributed.is_main()
    part = path.with_name(f"{path.name}.{key}.part")
    if main:
        path.parent.mkdir(parents=True, exist_ok=True)
    done = distributed.of_main(_whole_lines(part) if main else 0)
    if done:
        print(f"going on from line {done + 1} of {count}", flush=True)
    with (
        open(part if main else os.devnull, "ab") as file,
        tqdm(
            initial=done,
            total=count,
            unit="text",
            disable=None if main else True,
            dynamic_ncols=True,
        ) as bar,
    ):
        for start in range(done // step * step, count, step):
            found = list(lines(start, min(start + step, count)))[max(done - start, 0) :]
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in found))
            file.flush()
            bar.update(len(found))
    if main:
        part.replace(path)


def _whole_lines(part: Path) -> int:
    """How many lines are whole; cuts off what is behind them."""
    if not part.exists():
        return 0
    with part.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
    return content.count(b"\n")
