"""Trains a SentencePiece vocabulary as T5's: ids 0 padding, 1 end, 2 unknown; no start.

The 100 sentinels are not pieces: a T5 vocabulary puts them after the last piece.

  python scripts/train_vocabulary.py --corpus=FOLDER --output=vocabulary.model --size=8000
"""

import random
from pathlib import Path

import sentencepiece
from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.pretraining.corpus import documents

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of .jsonl files.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The model file to write.", required=True)
_SIZE = flags.DEFINE_integer("size", 8_000, "Number of pieces.")
_LINES = flags.DEFINE_integer("lines", 200_000, "Paragraphs to sample.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sample.")


def main() -> None:
    paragraphs = [
        paragraph
        for _, text in documents(_CORPUS.value)
        for paragraph in text.split("\n")
        if paragraph
    ]
    sample = random.Random(_SEED.value).sample(paragraphs, min(_LINES.value, len(paragraphs)))
    prefix = Path(_OUTPUT.value).with_suffix("")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_prefix=str(prefix),
        vocab_size=_SIZE.value,
        character_coverage=0.9995,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=2,
        minloglevel=1,
    )
    prefix.with_suffix(".vocab").unlink()


if __name__ == "__main__":
    plain_command.main(main)
