"""T5's vocabularies without TensorFlow: the same ids as SeqIO's."""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from prompt_tuning.errors import UserError

_PROTO: Any = sentencepiece_model_pb2  # its classes are created on import
EOS = 1
UNKNOWN = 2
BYTES = "bytes"  # path that stands for ByT5's vocabulary
_MOST_SPARE = 1_024  # rows of an embedding for sentinels and for a multiple of devices
_FIRST_BYTE = 3  # after padding, end and unknown


@runtime_checkable
class Vocabulary(Protocol):
    """Converts text to token ids, without an end token, and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class SentencePiece:
    """A SentencePiece model with T5's sentinels after its pieces, `<extra_id_0>` last.

    Raises:
      UserError: if the file does not exist or is not a SentencePiece model.
    """

    def __init__(self, path: epath.PathLike, extra_ids: int = 100) -> None:
        path = epath.Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"vocabulary {path}: no such file")
        try:
            model = _PROTO.ModelProto.FromString(path.read_bytes())
            for i in reversed(range(extra_ids)):
                kind = _PROTO.ModelProto.SentencePiece.USER_DEFINED
                model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=kind)
            self._pieces = sentencepiece.SentencePieceProcessor()
            self._pieces.LoadFromSerializedProto(model.SerializeToString())
        except Exception as error:  # protobuf and SentencePiece each raise their own
            raise UserError(f"vocabulary {path}: not a SentencePiece model") from error
        self._path, self._extra_ids = path, extra_ids

    def __repr__(self) -> str:
        return f"SentencePiece({str(self._path)!r}, {self._pieces.GetPieceSize()} pieces)"

    @property
    def pieces(self) -> list[str]:
        """The pieces of all ids, sentinels included."""
        return [self._pieces.IdToPiece(i) for i in range(self._pieces.GetPieceSize())]

    @property
    def size(self) -> int:
        """Number of pieces, without the sentinels."""
        return self._pieces.GetPieceSize() - self._extra_ids

    @property
    def words(self) -> list[int]:
        """Ids of the pieces of text: no sentinels, special tokens or single bytes."""
        sentinels = self._pieces.GetPieceSize() - self._extra_ids
        excluded = (self._pieces.IsControl, self._pieces.IsUnknown, self._pieces.IsByte)
        return [i for i in range(sentinels) if not any(test(i) for test in excluded)]

    def encode(self, text: str) -> list[int]:
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes up to the first end token; ids beyond the vocabulary are unknown."""
        size = self._pieces.GetPieceSize()
        return self._pieces.DecodeIds([i if i < size else UNKNOWN for i in _to_end(ids)])


class Bytes:
    """ByT5's vocabulary: the bytes of UTF-8, with ids from 3."""

    size = _FIRST_BYTE + 0xF5  # larger bytes do not occur in UTF-8

    def __repr__(self) -> str:
        return "Bytes()"

    def encode(self, text: str) -> list[int]:
        return [byte + _FIRST_BYTE for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes up to the first end token; leaves out what is not a byte or not UTF-8."""
        values = [i - _FIRST_BYTE for i in _to_end(ids)]
        return bytes(value for value in values if 0 <= value < 256).decode(errors="ignore")


def read(path: epath.PathLike, extra_ids: int = 100) -> Vocabulary:
    """Reads the SentencePiece model at a path; "bytes" gives ByT5's vocabulary.

    Raises:
      UserError: as `SentencePiece`.
    """
    return Bytes() if str(path) == BYTES else SentencePiece(path, extra_ids)


def check_size(pieces: int, rows: int) -> None:
    """Checks that a vocabulary can be that of a backbone; warns if it is much too small.

    Args:
      pieces: Number of pieces of the vocabulary; 0 if it is not known.
      rows: Number of rows of the backbone's embedding.

    Raises:
      UserError: If there are more pieces than rows.
    """
    if pieces > rows:
        raise UserError(
            f"the vocabulary has {pieces:,} pieces, but the backbone's embedding has {rows:,} "
            "rows; use the vocabulary of the backbone"
        )
    if pieces and rows - pieces > _MOST_SPARE:
        warnings.warn(
            f"the vocabulary has {pieces:,} pieces, far fewer than the {rows:,} rows of the "
            "backbone's embedding; if it is not the backbone's, answers mean nothing",
            stacklevel=2,
        )


def check_ids(ids: np.ndarray, rows: int) -> None:
    """Checks token ids, which the model would clip silently.

    Args:
      ids: Token ids, of any shape.
      rows: Number of rows of the backbone's embedding.

    Raises:
      UserError: If an id has no row in the embedding.
    """
    if (largest := ids.max(initial=0)) >= rows:
        raise UserError(
            f"a text has the token id {largest:,}, but the backbone's embedding has {rows:,} rows; "
            "use the vocabulary of the backbone"
        )
    if (smallest := ids.min(initial=0)) < 0:
        raise UserError(f"a text has the token id {smallest:,}; padding is 0, and ids are positive")


def _to_end(ids: Sequence[int]) -> list[int]:
    tokens = [int(i) for i in ids]
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens
