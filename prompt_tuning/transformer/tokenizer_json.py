"""Converts Hugging Face's `tokenizer.json` of a Gemma to a SentencePiece model.

Both describe byte-pair encoding. There, a list of pairs says what is merged first; here, the scores
of the pieces that the pairs merge into do.
"""

from collections.abc import Mapping
from typing import Any

from sentencepiece import sentencepiece_model_pb2

_PROTO: Any = sentencepiece_model_pb2  # its classes are created on import
_PIECE = _PROTO.ModelProto.SentencePiece
_CONTROL = {"<pad>": "pad_id", "<eos>": "eos_id", "<bos>": "bos_id"}


def sentencepiece_model(content: Mapping[str, Any]) -> bytes:
    """The SentencePiece model that gives the ids of a `tokenizer.json`.

    Args:
      content: of the file.

    Raises:
      ValueError: if it is not byte-pair encoding with bytes for unknown characters and "▁" for
        spaces, as Gemma's is.
    """
    model = content.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise ValueError("must be byte-pair encoding with byte_fallback, as Gemma's is")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if content.get("normalizer") != spaces:
        raise ValueError('its normalizer must replace " " by "▁" alone, as Gemma\'s does')
    ids: Mapping[str, int] = model["vocab"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    scores: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        scores.setdefault("".join(pair), -float(rank))
    added = {token["content"]: token for token in content.get("added_tokens", ())}
    unknown = model.get("unk_token", "<unk>")
    proto = _PROTO.ModelProto()
    for piece, number in sorted(ids.items(), key=lambda item: item[1]):
        if number != len(proto.pieces):
            raise ValueError(f"its vocabulary has no piece {len(proto.pieces)}")
        kind = _PIECE.NORMAL
        if piece == unknown:
            kind, proto.trainer_spec.unk_id = _PIECE.UNKNOWN, number
        elif piece in _CONTROL:
            kind = _PIECE.CONTROL
            setattr(proto.trainer_spec, _CONTROL[piece], number)
        elif piece in added:
            kind = _PIECE.USER_DEFINED
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            kind = _PIECE.BYTE
        # What no pair merges into is a character, and never merged.
        proto.pieces.add(piece=piece, score=scores.get(piece, -float(len(merges))), type=kind)
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback = _PROTO.TrainerSpec.BPE, True
    spec.vocab_size, spec.unk_piece = len(proto.pieces), unknown
    spec.pad_piece, spec.eos_piece, spec.bos_piece = "<pad>", "<eos>", "<bos>"
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()
