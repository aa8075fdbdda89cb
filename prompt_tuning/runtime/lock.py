"""One run in a folder at a time."""

import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterator

from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.runtime import distributed, files

NAME = "lock"


@contextlib.contextmanager
def only_run(folder: epath.Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder, which it makes if need be.

    The system frees the lock when the process ends, however that comes about. Folders in a bucket
    are not locked. Of the several processes of a run the first holds the lock.

    Raises:
      UserError: if another run's process holds the folder, or this one does not see the folder of
        the first.
    """
    if files.is_remote(folder):
        yield
        return
    if not distributed.is_main():
        distributed.barrier(NAME)
        if not (folder / NAME).exists():
            raise UserError(
                f"MODEL_DIR = {str(folder)!r}: is not the folder that process 0 has; name one on a "
                "file system that all processes share"
            )
        yield
        return
    with only_process(folder):
        distributed.barrier(NAME)
        yield


@contextlib.contextmanager
def only_process(folder: epath.Path) -> Iterator[None]:
    """`only_run` for what is a single process and a folder on a disk; asks nothing of JAX.

    Raises:
      UserError: if another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"MODEL_DIR = {str(folder)!r}: another run is at work in it (process "
                f"{file.read(100).strip()}); wait for it, or set another MODEL_DIR"
            ) from error
        except OSError as error:  # some network file systems have no locks
            warnings.warn(
                f"{folder}: cannot be locked ({error.strerror}); start no second run in it",
                stacklevel=2,
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
