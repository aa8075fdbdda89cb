"""Writes and checks the manifest of a checkpoint: checksums that reveal damage before loading.

The manifest is written last into the checkpoint's folder: a folder without one is incomplete.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime.files import is_remote

NAME = "manifest.json"
MAX_BYTES = 2**24


def write(folder: epath.Path, content: Mapping[str, Any]) -> None:
    """Writes a manifest of the files in `folder` and of `content`, which must be JSON.

    When it returns, local files are on the disk and not only in the system's page cache.
    """
    files = {name: _checksum(path, sync=True) for name, path in _files(folder) if name != NAME}
    path = folder / NAME
    path.write_bytes(_encoded({**content, "files": files}))
    _checksum(path, sync=True)


def read(folder: epath.Path) -> dict[str, Any]:
    """Reads the content given to `write`, after checking that no file has changed since.

    Raises:
      CheckpointError: naming folder and file, if there is no manifest, or a file is missing or has
        changed.
    """
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {NAME}: incomplete, or not a checkpoint of a run")
    with path.open("rb") as file:
        encoded = file.read(MAX_BYTES)
    try:
        content = json.loads(encoded)["content"]
        files = content.pop("files")
        whole = encoded == _encoded({**content, "files": files})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(f"{folder}: {NAME} is damaged")
    present = dict(_files(folder))
    for name, checksum in files.items():
        if name not in present:
            raise CheckpointError(f"{folder}: {name} is missing")
        if _checksum(present[name]) != checksum:
            raise CheckpointError(f"{folder}: {name} is damaged")
    return content


def _encoded(content: Mapping[str, Any]) -> bytes:
    body = json.dumps(content, sort_keys=True)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"sha256": checksum, "content": content}, sort_keys=True).encode()


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Yields all files with their paths relative to `folder`; epath has no recursive search."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif path.is_file():
            yield f"{prefix}{path.name}", path


def _checksum(path: epath.Path, sync: bool = False) -> str:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if sync and not is_remote(path):
            os.fsync(file.fileno())
    return checksum
