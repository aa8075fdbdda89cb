"""The peer's half of gemma_vocabulary.py: a tokenizer.json as Gemma's, and ids of texts."""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE


def main() -> None:
    given = json.load(sys.stdin)
    merges = [tuple(pair) for pair in given["merges"]]
    tokenizer = Tokenizer(
        BPE(given["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in given["special"]])
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in given["defined"]])
    folder = Path(given["folder"])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    ids = {text: tokenizer.encode(text).ids for text in given["texts"]}
    (folder / "ids.json").write_text(json.dumps(ids, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
