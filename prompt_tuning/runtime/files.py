"""Files and folders that are committed by rename: they exist complete or not at all."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime import distributed


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names a bucket (`gs://...`) rather than a local file system."""
    return "://" in os.fspath(path)


def to_json(content: Any, indent: int | None = None) -> str:
    """Formats content as JSON, which has no NaN and no infinity: such a number becomes null."""
    return json.dumps(_replace(content, _is_not_finite, None), indent=indent, allow_nan=False)


def json_line(content: Any) -> bytes:
    """Formats content as a line of JSON for people to read: UTF-8, letters as themselves."""
    text = json.dumps(_replace(content, _is_not_finite, None), ensure_ascii=False, allow_nan=False)
    # What is a line break to some readers stays an escape, and so does half a surrogate pair.
    text = text.translate({0x85: r"\u0085", 0x2028: r"\u2028", 0x2029: r"\u2029"})
    return text.encode("utf-8", "backslashreplace") + b"\n"


def from_json(text: str | bytes) -> Any:
    """Parses content without nulls of its own: a null is a number that was not finite, a NaN."""
    return _replace(json.loads(text), lambda value: value is None, math.nan)


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _replace(content: Any, is_replaced: Callable[[Any], bool], replacement: Any) -> Any:
    """Replaces values at any depth of dictionaries and lists."""
    if isinstance(content, Mapping):
        return {key: _replace(value, is_replaced, replacement) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_replace(value, is_replaced, replacement) for value in content]
    return replacement if is_replaced(content) else content


def write_json(path: epath.PathLike, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file, complete or not at all; a number that is not finite becomes null."""
    with renamed_when_done(path) as temporary:
        temporary.write_text(to_json(content, indent=2) + "\n")


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
