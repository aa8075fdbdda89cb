"""T5's vocabularies without TensorFlow: the same ids as SeqIO's."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from prompt_tuning.errors import UserError

_PROTO: Any = sentencepiece_model_pb2  # makes its classes when it is imported
EOS = 1
UNKNOWN = 2
BYTES = "bytes"  # names ByT5's vocabulary
_FIRST_BYTE = 3  # behind padding, end and unknown


@runtime_checkable
class Vocabulary(Protocol):
    """Text to token ids without an end token, and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class SentencePiece:
    """A SentencePiece model with T5's sentinels, `<extra_id_0>` last, behind its pieces.

    Raises:
      UserError: if there is no such file, or it is no SentencePiece model.
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
        """Of all ids, sentinels too."""
        return [self._pieces.IdToPiece(i) for i in range(self._pieces.GetPieceSize())]

    @property
    def words(self) -> list[int]:
        """The ids of pieces of text: of no sentinel, no special token, no single byte."""
        sentinels = self._pieces.GetPieceSize() - self._extra_ids
        others = (self._pieces.IsControl, self._pieces.IsUnknown, self._pieces.IsByte)
        return [i for i in range(sentinels) if not any(other(i) for other in others)]

    def encode(self, text: str) -> list[int]:
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Up to the first end token; ids beyond the vocabulary are unknown."""
        size = self._pieces.GetPieceSize()
        return self._pieces.DecodeIds([i if i < size else UNKNOWN for i in _to_end(ids)])


class Bytes:
    """ByT5's vocabulary: the bytes of UTF-8, from 3 on."""

    def __repr__(self) -> str:
        return "Bytes()"

    def encode(self, text: str) -> list[int]:
        return [byte + _FIRST_BYTE for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """Up to the first end token; what is no byte, or no UTF-8, is left out."""
        found = [i - _FIRST_BYTE for i in _to_end(ids)]
        return bytes(i for i in found if 0 <= i < 256).decode(errors="ignore")


def read(path: epath.PathLike, extra_ids: int = 100) -> Vocabulary:
    """The vocabulary at a path, or ByT5's for "bytes"; raises as `SentencePiece`."""
    return Bytes() if str(path) == BYTES else SentencePiece(path, extra_ids)


def _to_end(ids: Sequence[int]) -> list[int]:
    found = [int(i) for i in ids]
    return found[: found.index(EOS)] if EOS in found else found
