"""Files and folders that are there whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime import distributed


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names a bucket (`gs://...`) rather than a local file system."""
    return "://" in os.fspath(path)


def write_json(path: epath.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with renamed_when_done(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def renamed_when_done(path: epath.PathLike, everywhere: bool = False) -> Iterator[epath.Path]:
    """Yields a temporary path beside `path`; on success it takes `path`'s place.

    Of several processes the first alone writes, unless `everywhere`: the others write to nowhere.
    """
    if not (everywhere or distributed.is_main()):
        yield epath.Path(os.devnull)
        return
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_when_done(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary folder beside `path`, which must not exist; on success it gets its name.

    Raises:
      CheckpointError: if `path` exists.
    """
    path = epath.Path(path).expanduser()
    if path.exists():
        raise CheckpointError(f"{path}: exists; choose another path, or remove it first")
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        temporary.rmtree(missing_ok=True)
        raise
