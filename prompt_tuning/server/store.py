"""Files of tasks in a folder: a manifest names them, and each change of it is one rename."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from prompt_tuning.errors import CheckpointError, UserError

_SUFFIX, _MANIFEST, _LOCK = ".safetensors", "manifest.json", "lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
MANIFEST_BYTES = 2**24


class DamagedStore(CheckpointError):
    """A store whose own files are damaged or gone, whatever was asked of it."""


def checked_name(name: str) -> str:
    """A name that a task may have.

    Raises:
      UserError: if it may not.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"model = {name[:80]!r}: a name is up to 64 letters, digits, '.', '_' and '-', and "
            "begins with a letter or a digit"
        )
    return name


class Store:
    """A folder with the files of tasks, named by their SHA-256, and a manifest of their names.

    Several processes may share it. A process that is killed while it writes leaves the task as it
    was before, or as it is afterwards.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        """Makes the folder if there is none."""
        self._folder = Path(folder).expanduser()
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each task's file, by the task's name.

        Raises:
          DamagedStore: if the manifest is damaged.
        """
        path = self._folder / _MANIFEST
        if not path.is_file():
            return {}
        try:
            digests = json.loads(path.read_bytes()[:MANIFEST_BYTES])
            good = all(checked_name(name) and _DIGEST.fullmatch(digests[name]) for name in digests)
            if not (isinstance(digests, dict) and good):
                raise ValueError
        except (ValueError, TypeError, RecursionError) as error:
            raise DamagedStore(f"{path}: is not a manifest of tasks; restore it") from error
        return digests

    def read(self, digest: str) -> bytes:
        """The content of a file.

        Raises:
          DamagedStore: if it is missing or damaged.
        """
        path = self._path(digest)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedStore(f"{path}: cannot be read ({error})") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedStore(
                f"{path}: is damaged; restore it, or delete the task and put it again"
            )
        return content

    def put(self, name: str, content: bytes) -> None:
        """Stores a task's file under a name."""
        digest = hashlib.sha256(content).hexdigest()
        with self._locked():
            self._write(self._path(digest), content)
            self._save(self.digests | {checked_name(name): digest})

    def delete(self, name: str) -> None:
        """Forgets a task, and its file unless another task has the same."""
        with self._locked():
            self._save({key: value for key, value in self.digests.items() if key != name})

    def _save(self, digests: dict[str, str]) -> None:
        self._write(self._folder / _MANIFEST, json.dumps(digests, indent=2).encode() + b"\n")
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if _DIGEST.fullmatch(path.stem) and path.stem not in digests.values():
                path.unlink(missing_ok=True)
        for path in self._folder.glob("*.tmp-*"):  # of a process that was killed
            path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._folder / (digest + _SUFFIX)

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes from changing the manifest at the same time."""
        with (self._folder / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield
