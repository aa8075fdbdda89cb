"""Measures what a backbone answers on fresh examples of pre-training's kinds (docs/backbone.md).

Greedy answers, exact, beside the share that guessing among the options gives. Inputs are cut to
`--length`: backbones answer those that are longer than any of their training worse than cut ones.

  python scripts/measure_backbone.py --size=demo --weights=FILE --corpus=FOLDER \
    --labelled=FOLDER --table=FOLDER --json=FILE

The teacher's choices and the pairs are drawn from texts that training leaves out.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from prompt_tuning import decoding, embedded, sharding
from prompt_tuning.cli import plain_command
from prompt_tuning.methods.base import Method
from prompt_tuning.pretraining import cloze
from prompt_tuning.pretraining.choices import KINDS
from prompt_tuning.pretraining.mixture import Mixture, pad
from prompt_tuning.t5.config import preset
from prompt_tuning.trainer import initialize
from prompt_tuning.transformer.vocabulary import EOS

BATCH = 100
TARGETS = 16  # tokens

_SIZE = flags.DEFINE_string("size", "demo", "Preset of the backbone.")
_WEIGHTS = flags.DEFINE_string("weights", None, "The .safetensors file.", required=True)
_CORPUS = flags.DEFINE_string("corpus", None, "Folder of the corpus.", required=True)
_LABELLED = flags.DEFINE_string("labelled", None, "Folder of the labelled sets.", required=True)
_TABLE = flags.DEFINE_string("table", None, "Folder of the teacher's table.", required=True)
_LENGTH = flags.DEFINE_integer(
    "length", Mixture.choice_length, "Input tokens of a choice; cuts longer ones.", lower_bound=2
)
_EXAMPLES = flags.DEFINE_integer("examples", 500, "Examples of each kind.")
_SEED = flags.DEFINE_integer("seed", 12_345, "Of the examples.")
_JSON = flags.DEFINE_string("json", "", "File to write the figures to.")

Example = tuple[str, str, float]  # input, answer, share right by guessing


def main() -> None:
    mixture = Mixture(_CORPUS.value, _LABELLED.value, _TABLE.value, embedded.vocabulary(), ())
    tuned = initialize(
        preset(_SIZE.value), Method(), layout=sharding.layout(), checkpoint=_WEIGHTS.value
    )
    decode = jax.jit(functools.partial(decoding.greedy, tuned.model, length=TARGETS))
    lengths = {"pairs": mixture.pair_length, "cloze": mixture.input_length}
    figures = []
    for kind in (*KINDS, "pairs", "cloze"):
        rng = np.random.default_rng(_SEED.value)
        examples = drawn(mixture, kind, rng, _EXAMPLES.value)
        sources = mixture.encode([source for source, _, _ in examples])
        answers = mixture.encode([answer for _, answer, _ in examples])
        length = lengths.get(kind, _LENGTH.value)
        rows = pad(list(zip(sources, answers, strict=True)), length, TARGETS)
        tokens = rows["encoder_input_tokens"]
        given = [
            row
            for start in range(0, len(tokens), BATCH)
            for row in np.asarray(decode(tuned.params, tokens[start : start + BATCH]))
        ]
        right = [until_end(row) == ids for row, ids in zip(given, answers, strict=True)]
        chance = np.mean([guess for _, _, guess in examples])
        figures.append(
            {
                "size": _SIZE.value,
                "kind": kind,
                "length": length,
                "examples": len(examples),
                "exact": round(float(np.mean(right)), 4),
                "chance": round(float(chance), 4),
            }
        )
        print(f"{kind:14s} exact {np.mean(right):.3f}  chance {chance:.3f}", flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def drawn(mixture: Mixture, kind: str, rng: np.random.Generator, count: int) -> list[Example]:
    """`count` examples of a kind, none of a window or pair that training sees."""
    if kind == "pairs":
        return [(*pair, 0.5) for pair in mixture.pairs(measuring=True).draw(rng, count)]
    if kind == "cloze":
        found: list[Example] = []
        while len(found) < count:
            if pair := cloze.draw(rng, mixture.documents):
                found.append((*pair, 0.0))
        return found
    examples = []
    for choice in mixture.choices(measuring=True).of_kind(kind, rng, count):
        options = choice.options(rng)
        text = ", ".join(options) + ": " + choice.text
        examples.append((text, choice.answer, 1 / len(options)))
    return examples


def until_end(row: np.ndarray) -> list[int]:
    """The ids before the first end token."""
    ids = [int(token) for token in row]
    return ids[: ids.index(EOS)] if EOS in ids else ids


if __name__ == "__main__":
    plain_command.main(main)
