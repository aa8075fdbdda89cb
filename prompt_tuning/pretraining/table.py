"""The teacher's table: texts, options and vectors that pre-training reads, in plain files.

`scripts/make_table.py` writes it once, with a sentence encoder; nothing here imports one. In the
folder, with `table.json`, which describes the rest and is written last:

  windows.jsonl   {"text", "source"}, a text of one to three sentences each
  options.json    words and pairs of words
  pairs.jsonl     {"first", "second", "similarity"}, two sentences and their cosine
  windows.npy     float16 [windows, width], rows of unit length, as in the two files below
  options.npy     float16 [options, width]
  pieces.npy      float32 [pieces, width], one row per piece of the vocabulary
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.errors import UserError

FORMAT = 1
MANIFEST = "table.json"
KEPT_FOR_MEASURING = 50  # every 50th window and pair is for measuring, never for training


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sentences and the teacher's cosine of them."""

    first: str
    second: str
    similarity: float


@dataclasses.dataclass(frozen=True)
class Table:
    """A teacher's table on disk; its parts are read when they are first asked for.

    Attributes:
      folder: Folder of the table.
      about: Manifest: `format`, `teacher`, `vocabulary` (SHA-256), counts by name in `rows`,
        `width`, and `held_back`, digests of the texts that share a run of words with held-out data.
    """

    folder: Path
    about: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Table":
        """Opens a table and compares its files' sizes with the manifest.

        Raises:
          UserError: If it is missing, unfinished, of another format or damaged.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        remedy = "make it with scripts/make_table.py"
        if not path.exists():
            raise UserError(f"TABLE = {str(folder)!r}: no {MANIFEST} in it; {remedy}")
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from None
        version = about.get("format") if isinstance(about, dict) else None
        if version != FORMAT:
            raise UserError(
                f"{path}: has format {version!r}, this version reads {FORMAT}; {remedy}"
            )
        table = cls(folder, about)
        for name in ("windows", "options", "pieces"):
            shape = (about["rows"][name], about["width"])
            if table._mapped(name).shape != shape:
                raise UserError(
                    f"{folder / name}.npy: has shape {table._mapped(name).shape}, {MANIFEST} says "
                    f"{shape}; {remedy}"
                )
        return table

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """The windows' texts."""
        return [row["text"] for row in self._lines("windows")]

    @functools.cached_property
    def options(self) -> Sequence[str]:
        """Words and pairs of words."""
        path = self.folder / "options.json"
        rows = json.loads(path.read_text(encoding="utf-8"))
        return self._whole(path, rows, "options")

    @functools.cached_property
    def pairs(self) -> Sequence[Pair]:
        """Pairs of sentences."""
        return [Pair(**row) for row in self._lines("pairs")]

    @functools.cached_property
    def window_vectors(self) -> np.ndarray:
        """[windows, width] float16, mapped from disk."""
        return self._mapped("windows")

    @functools.cached_property
    def option_vectors(self) -> np.ndarray:
        """[options, width] float16."""
        return np.array(self._mapped("options"))

    @functools.cached_property
    def piece_vectors(self) -> np.ndarray:
        """[pieces, width] float32, in the order of the vocabulary."""
        return self._mapped("pieces").astype(np.float32)

    @functools.cached_property
    def held_back(self) -> frozenset[str]:
        """Digests of the texts that pre-training must not see."""
        return frozenset(self.about["held_back"])

    def check_vocabulary(self, vocabulary: str | Path) -> None:
        """Compares a SentencePiece file with the one whose pieces were embedded.

        Raises:
          UserError: If it is another one.
        """
        if file_digest(vocabulary) != self.about["vocabulary"]:
            raise UserError(
                f"TABLE = {str(self.folder)!r}: was made for another vocabulary than "
                f"VOCABULARY_FILE = {str(vocabulary)!r}; make it with scripts/make_table.py"
            )

    def _mapped(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path}: cannot be read as an array ({error}); make the table with "
                "scripts/make_table.py"
            ) from None

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        try:
            rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read as lines of JSON ({error}); make the table with "
                "scripts/make_table.py"
            ) from None
        return self._whole(path, rows, name)

    def _whole(self, path: Path, rows: list, name: str) -> list:
        if len(rows) != self.about["rows"][name]:
            raise UserError(
                f"{path}: has {len(rows)} rows, {MANIFEST} says {self.about['rows'][name]}; make "
                "the table with scripts/make_table.py"
            )
        return rows


def digest(text: str) -> str:
    """A short name of a text, under which it is held back."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
