"""Files and folders that are committed by rename: they exist complete or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime import distributed


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names a bucket (`gs://...`) rather than a local file system."""
    return "://" in os.fspath(path)


def write_json(path: epath.PathLike, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file, complete or not at all."""
    with renamed_when_done(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def renamed_when_done(path: epath.PathLike, everywhere: bool = False) -> Iterator[epath.Path]:
    """Yields a temporary path beside `path`, which replaces `path` on success.

    In a multi-process run only process 0 writes, unless `everywhere` is set; the others get a path
    that discards what is written.
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
    """Yields a temporary folder, which is renamed to `path` on success.

    Raises:
      CheckpointError: if `path` already exists.
    """
    path = epath.Path(path).expanduser()
    if path.exists():
        raise CheckpointError(f"{path}: already exists; choose another path, or remove it first")
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        temporary.rmtree(missing_ok=True)
        raise
