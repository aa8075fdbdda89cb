"""A cache on disk of tokenised examples, so that a second run does not tokenise again.

The key covers everything that the examples depend on: the source with the sizes, times and contents
of its files, the preprocessors with their arguments, vocabulary and lengths, SeqIO's version and
the code of `prompt_tuning.data`. Tasks that use code of other packages are not cached, since a
change of it would go unnoticed.
"""

import functools
import hashlib
import io
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.runtime.files import renamed_when_done

_KNOWN = ("prompt_tuning.data.", "seqio.")
_READ = 2**24  # bytes at each end of a file that are compared
_DIGEST = hashlib.sha256().digest_size


def default_folder() -> str:
    """The folder `prompt_tuning` in the user's cache folder: `$XDG_CACHE_HOME`, or `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.join(root, "prompt_tuning")


def path(folder: str, task: seqio.Task, split: str, lengths: Mapping[str, int]) -> Path | None:
    """The file of a task's examples; None if `folder` is empty or they cannot be cached."""
    if not folder:
        return None
    parts = (task.source, task.preprocessors, task.output_features, split, dict(lengths))
    try:
        key = _described([*parts, _code()])
    except _UnknownError:
        return None
    name = f"{task.name}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.tokens"
    return Path(folder).expanduser() / name


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays for `load`; replaces an existing file atomically, and only warns on failure."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    try:
        with renamed_when_done(path, everywhere=True) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError as error:
        logging.warning("CACHE_DIR: %s cannot be written (%s): nothing is cached", path, error)


def load(path: Path) -> dict[str, np.ndarray] | None:
    """Reads the arrays of `save`; None if there is no file or, with a warning, a damaged one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logging.warning("CACHE_DIR: %s cannot be read (%s): tokenising again", path, error)
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        logging.warning("CACHE_DIR: %s is damaged: tokenising again", path)
        return None
    with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as arrays:
        return dict(arrays)


class _UnknownError(Exception):
    """A value whose behaviour cannot be described by a text."""


@functools.cache
def _code() -> str:
    """A hash of SeqIO's version and of the source of `prompt_tuning.data`."""
    code = hashlib.sha256(seqio.__version__.encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def _described(value: Any) -> str:
    """A text that differs whenever `value` behaves differently."""
    match value:
        case None | bool() | int() | float():
            return repr(value)
        case str():
            return repr(value) + (_stats(value) if value else "")
        case Path():  # a data set's file may refer to others in its folder
            return repr(str(value)) + _stats(str(value if value.is_dir() else value.parent))
        case BadRows() if not value.summary():  # otherwise rows must be read to be counted
            return ""
        case Mapping():
            return f"{{{','.join(_described(pair) for pair in value.items())}}}"
        case list() | tuple():
            return f"[{','.join(map(_described, value))}]"
        case functools.partial():
            return _described([value.func, value.args, value.keywords])
        case types.MethodType():
            return _described([value.__self__, value.__func__])
        case type() | types.FunctionType() if _is_known(value) or value.__module__ == "builtins":
            return f"{value.__module__}.{value.__qualname__}"
        case tf.DType():
            return value.name
        case seqio.SentencePieceVocabulary():
            return hashlib.sha256(value.sp_model).hexdigest()
        case seqio.utils.LazyTfdsLoader():  # reading `data_dir` changes it
            return _described({**vars(value), "_data_dir_override": value.data_dir})
    if _is_known(type(value)) and not isinstance(value, BadRows):
        return _described([type(value), vars(value)])
    raise _UnknownError


def _is_known(value: Any) -> bool:
    """Whether `value` is a named class or function of code that `_code` covers."""
    return value.__module__.startswith(_KNOWN) and "<" not in value.__qualname__


def _stats(path: str) -> str:
    """What is known of a file, or of each file in a folder; no entries for other strings."""
    full = os.path.abspath(os.path.expanduser(path))
    files = [entry.path for entry in os.scandir(full)] if os.path.isdir(full) else [full]
    return repr([_stat(file) for file in sorted(files) if os.path.isfile(file)])


def _stat(file: str) -> tuple[str, int, int, str]:
    """Path, size, time and checksum: a copy may keep size and time. Of large files, both ends."""
    status, checksum = os.stat(file), hashlib.sha256()
    with open(file, "rb") as content:
        checksum.update(content.read(_READ))
        content.seek(max(status.st_size - _READ, content.tell()))
        checksum.update(content.read(_READ))
    return file, status.st_size, status.st_mtime_ns, checksum.hexdigest()
