"""Vocabularies without TensorFlow: the same ids as SeqIO's."""

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from prompt_tuning.errors import UserError
from prompt_tuning.runtime.files import renamed_when_done
from prompt_tuning.transformer.tokenizer_json import sentencepiece_model

_PROTO: Any = sentencepiece_model_pb2  # its classes are created on import
EOS = 1
UNKNOWN = 2
BYTES = "bytes"  # path that stands for ByT5's vocabulary
SENTINEL = "<extra_id_0>"  # the one that begins each target of span corruption
SENTINELS = 100  # T5's, after the pieces of a vocabulary without a token that begins texts
FILES = ("tokenizer.model", "spiece.model", "tokenizer.json")  # of a Hugging Face folder
_MOST_SPARE = 1_024  # rows of an embedding for sentinels and for a multiple of devices
_FIRST_BYTE = 3  # after padding, end and unknown


@runtime_checkable
class Vocabulary(Protocol):
    """Converts text to token ids, without an end token, and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class SentencePiece:
    """A SentencePiece model.

    T5's sentinels follow its pieces, `<extra_id_0>` last, unless it has a token that begins texts,
    as Gemma's has.

    Attributes:
      begin: ids in front of every input: that token, or none.
      unknown: id of the unknown piece.

    Raises:
      UserError: if the file does not exist or is not a SentencePiece model.
    """

    def __init__(self, path: epath.PathLike, extra_ids: int | None = None) -> None:
        folder, path = path, file_of(path)
        if not path.is_file():
            raise UserError(f"vocabulary {path}: no such file")
        try:
            content = path.read_bytes()
            self._pieces = sentencepiece.SentencePieceProcessor()
            self._pieces.LoadFromSerializedProto(content)
            begin = begin_of_pieces(self._pieces)
            extra_ids = sentinels(begin) if extra_ids is None else extra_ids
            if extra_ids:
                self._pieces.LoadFromSerializedProto(_with_sentinels(content, extra_ids))
        except Exception as error:  # protobuf and SentencePiece each raise their own
            raise UserError(f"vocabulary {path}: not a SentencePiece model") from error
        check_special(self._pieces, f"vocabulary {path}")
        warn_of_added(folder, self._pieces)
        self._path, self._extra_ids = path, extra_ids
        self.begin, self.unknown = begin, self._pieces.unk_id()

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

    @functools.cached_property
    def fingerprint(self) -> str:
        """`fingerprint_of` the pieces, without the sentinels."""
        return fingerprint_of(self._pieces, self.size)

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
        return self._pieces.DecodeIds([i if i < size else self.unknown for i in _to_end(ids)])

    def byte(self, token: int) -> int | None:
        """The byte that a token is; None for a piece of text."""
        is_byte = token < self.size and self._pieces.IsByte(token)
        return int(self._pieces.IdToPiece(token)[1:-1], 16) if is_byte else None


class Bytes:
    """ByT5's vocabulary: the bytes of UTF-8, with ids from 3."""

    size = _FIRST_BYTE + 0xF5  # larger bytes do not occur in UTF-8
    fingerprint = BYTES

    def __repr__(self) -> str:
        return "Bytes()"

    def encode(self, text: str) -> list[int]:
        return [byte + _FIRST_BYTE for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes up to the first end token; leaves out what is not a byte or not UTF-8."""
        values = [i - _FIRST_BYTE for i in _to_end(ids)]
        return bytes(value for value in values if 0 <= value < 256).decode(errors="ignore")

    def byte(self, token: int) -> int | None:
        """The byte that a token is; None for a special token."""
        value = token - _FIRST_BYTE
        return value if 0 <= value < 256 else None


def read(path: epath.PathLike, extra_ids: int | None = None) -> Vocabulary:
    """Reads the SentencePiece model at a path (see `file_of`); "bytes" gives ByT5's vocabulary.

    Raises:
      UserError: as `SentencePiece`.
    """
    return Bytes() if str(path) == BYTES else SentencePiece(path, extra_ids)


def fingerprint_of(pieces: sentencepiece.SentencePieceProcessor, count: int) -> str:
    """16 hexadecimal digits of the first `count` pieces in the order of their ids."""
    texts = pieces.IdToPiece(list(range(count)))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def begin_of(vocabulary: Any) -> tuple[int, ...]:
    """The ids in front of every input: none, unless the vocabulary has `begin`."""
    return tuple(getattr(vocabulary, "begin", ()))


def byte_of(vocabulary: Any, token: int) -> int | None:
    """The byte that a token is; None for any other token, and if the vocabulary does not say."""
    byte = getattr(vocabulary, "byte", None)
    return byte(token) if byte is not None else None


def unknown_of(vocabulary: Any) -> int:
    """The id of the unknown piece."""
    return int(getattr(vocabulary, "unknown", UNKNOWN))


def with_pieces(vocabulary: Vocabulary) -> Vocabulary:
    """SeqIO's vocabularies as ours, which say more, such as `begin`; others as they are."""
    path = getattr(vocabulary, "sentencepiece_model_file", None)
    if type(vocabulary).__name__ == "ByteVocabulary":
        return Bytes()
    return SentencePiece(path, vocabulary.extra_ids) if path else vocabulary  # type: ignore


def sentinels(begin: Sequence[int]) -> int:
    """The number of sentinels after a vocabulary's pieces, from the ids that begin its inputs."""
    return 0 if begin else SENTINELS


def begin_of_pieces(pieces: sentencepiece.SentencePieceProcessor) -> tuple[int, ...]:
    """The id of the piece that begins texts, if the model has it, whatever its `bos_id` says."""
    number = pieces.bos_id()
    return (number,) if number >= 0 else ()


def _with_sentinels(content: bytes, count: int) -> bytes:
    model = _PROTO.ModelProto.FromString(content)
    for i in reversed(range(count)):
        kind = _PROTO.ModelProto.SentencePiece.USER_DEFINED
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=kind)
    return bytes(model.SerializeToString())


def file_of(path: epath.PathLike) -> epath.Path:
    """The SentencePiece model that a path stands for.

    Args:
      path: the model; a Hugging Face folder with one of `FILES`; or a `tokenizer.json`, which is
        converted, once, into a file of the user's cache folder.

    Raises:
      UserError: if a folder has no vocabulary, or a `tokenizer.json` is not Gemma's kind.
    """
    path = epath.Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"vocabulary {path}: has none of {', '.join(FILES)}")
        path = found[0]
    if path.suffix != ".json" or not path.is_file():
        return path
    content = path.read_bytes()
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    name = f"vocabulary-{hashlib.sha256(content).hexdigest()[:16]}.model"
    converted = epath.Path(root).expanduser() / "prompt_tuning" / name
    if not converted.exists():
        try:
            model = sentencepiece_model(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"vocabulary {path}: {error}; give its tokenizer.model") from error
        with renamed_when_done(converted) as temporary:
            temporary.write_bytes(model)
    return converted


def warn_of_added(folder: epath.PathLike, pieces: sentencepiece.SentencePieceProcessor) -> None:
    """Warns of tokens that a Hugging Face folder adds to its SentencePiece model; others pass."""
    folder, added = epath.Path(folder).expanduser(), set[str]()
    if (path := folder / "added_tokens.json").is_file():
        added |= json.loads(path.read_text()).keys()
    if (path := folder / "tokenizer_config.json").is_file():
        tokens = json.loads(path.read_text()).get("added_tokens_decoder", {})
        added |= {token["content"] for token in tokens.values()}
    if not added:
        return
    known = {pieces.IdToPiece(i).removeprefix("▁") for i in range(pieces.GetPieceSize())}
    known |= {f"<extra_id_{i}>" for i in range(SENTINELS)}
    if unread := sorted(added - known):
        warnings.warn(
            f"vocabulary {folder}: the tokens that it adds ({', '.join(unread[:3])}"
            f"{', ...' if unread[3:] else ''}) are not read: in a text they are other pieces",
            stacklevel=2,
        )


def check_special(pieces: sentencepiece.SentencePieceProcessor, name: str) -> None:
    """Checks that a model pads with 0 and ends texts with 1, as the families of backbones do.

    Raises:
      UserError: if it does not; the message begins with `name`.
    """
    if (pieces.pad_id(), pieces.eos_id()) != (0, EOS):
        raise UserError(
            f"{name}: pads with the id {pieces.pad_id()} and ends texts with {pieces.eos_id()}; "
            "must be 0 and 1, as in T5 (SentencePiece's trainer: --pad_id=0 --eos_id=1 --unk_id=2)"
        )


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
