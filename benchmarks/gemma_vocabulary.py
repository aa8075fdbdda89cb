"""Writes tests/fixtures/gemma/vocabulary: a small vocabulary of Gemma's kind, in both formats.

    python benchmarks/gemma_vocabulary.py

tokenizer.model by SentencePiece, tokenizer.json and ids.json, the ids of some texts, by the
tokenizers of Hugging Face in the peer's environment, which is made on the first use.
"""

import checkout

import json
import subprocess
import tempfile
from pathlib import Path

import peer
import sentencepiece
from gemma_arrays import FIXTURES
from sentencepiece import sentencepiece_model_pb2

from prompt_tuning import embedded

FOLDER = FIXTURES / "vocabulary"
PIECES = 600
TEXTS = [
    "",
    " ",
    "A dull film.",
    "  two  spaces,\nand a line\n\n\nor three ",
    "caf\u00e9 \u2014 12,5 % \U0001f600 \u4e2d",
    "the<start_of_turn>user <unused>   ▁",
    "unwatchable, unbelievably tedious; yet somehow endearing",
]


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts.txt")
        lines = Path(embedded.data("demo_reviews", "train")).read_text().splitlines()
        texts.write_text("\n".join(json.loads(line)["text"] for line in lines))
        sentencepiece.SentencePieceTrainer.train(
            input=str(texts),
            model_prefix=str(FOLDER / "tokenizer"),
            vocab_size=PIECES,
            model_type="bpe",
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            user_defined_symbols=["<start_of_turn>", "\n", "\n\n", "▁▁"],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    (FOLDER / "tokenizer.vocab").unlink()
    script = Path(__file__).with_name("gemma_vocabulary_peer.py")
    given = json.dumps({"folder": str(FOLDER), "texts": TEXTS, **pieces_and_merges()})
    subprocess.run([peer.python(), script], input=given, text=True, check=True)


def pieces_and_merges() -> dict:
    """What a tokenizer.json says of tokenizer.model: every pair that makes a piece, best first."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((FOLDER / "tokenizer.model").read_bytes())
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    normal = {p.piece: p.score for p in proto.pieces if p.type == p.NORMAL}
    merges = [
        (-score, ids[piece[:cut]], [piece[:cut], piece[cut:]])
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    special = [p.piece for p in proto.pieces if p.type in (p.CONTROL, p.UNKNOWN)]
    defined = [p.piece for p in proto.pieces if p.type == p.USER_DEFINED]
    return {
        "vocab": ids,
        "merges": [pair for *_, pair in sorted(merges)],
        "special": special,
        "defined": defined,
    }


if __name__ == "__main__":
    main()
