"""Opens compressed text files."""

import gzip
import lzma
from pathlib import Path
from typing import IO


def open_text(path: Path) -> IO[str]:
    """Opens a UTF-8 text file, decompressing `.xz` and `.gz`."""
    match path.suffix.lower():
        case ".xz":
            return lzma.open(path, "rt", encoding="utf-8")
        case ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        case _:
            return path.open(encoding="utf-8")
