"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def renamed_when_done(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path beside `path`; on success it takes `path`'s place."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
