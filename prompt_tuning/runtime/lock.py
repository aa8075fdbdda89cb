"""Locks a folder, so that only one run at a time uses it."""

import contextlib
import contextvars
import fcntl
import os
import warnings
from collections.abc import Iterator
from typing import IO

from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.runtime import distributed, files

NAME = "lock"
# Per thread, so that a command can hold the folder in which it then calls `fit`.
_held = contextvars.ContextVar[frozenset[str]]("held", default=frozenset())


@contextlib.contextmanager
def only_run(folder: epath.Path) -> Iterator[None]:
    """Locks a run's folder, which is created if necessary.

    The operating system releases the lock when the process ends in any way. Folders in a bucket
    are not locked. In a multi-process run, process 0 holds the lock. Within the `with` block, the
    same thread may lock the folder again.

    Raises:
      UserError: if another run holds the folder, or this process does not share it with process 0.
    """
    held, path = _held.get(), os.path.realpath(folder)
    if files.is_remote(folder) or path in held:
        yield
        return
    with only_process(folder) if distributed.is_main() else contextlib.nullcontext():
        distributed.barrier(NAME)
        if not (folder / NAME).exists():
            raise UserError(
                f"MODEL_DIR = {str(folder)!r}: is not the folder of process 0; use a file system "
                "that all processes share"
            )
        token = _held.set(held | {path})
        try:
            yield
        finally:
            _held.reset(token)


@contextlib.contextmanager
def only_process(folder: epath.Path) -> Iterator[None]:
    """As `only_run`, for a single process and a local folder; does not initialise JAX.

    Raises:
      UserError: if another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "a+") as file:
        if not take(file, folder):
            file.seek(0)
            raise UserError(
                f"MODEL_DIR = {str(folder)!r}: another run is using it (process "
                f"{file.read(100).strip()}); wait for it, or set another MODEL_DIR"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def take(file: IO, name: epath.PathLike) -> bool:
    """Locks an open file until it is closed; returns False if another process holds it.

    Some network file systems have no locks; a warning then begins with `name`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(
            f"{name}: cannot be locked ({error.strerror}); do not start a second run in it",
            stacklevel=3,
        )
    return True
