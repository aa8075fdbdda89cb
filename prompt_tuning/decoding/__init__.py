"""Decoding with a cache, and scores of given targets (rank classification).

The loops `decode` and `beam_search` call a step function and know no model; `start` makes one's.
"""

from prompt_tuning.decoding.beam import beam_search
from prompt_tuning.decoding.model import RANK_MEMORY_GIB, greedy, rank_bytes, score, start
from prompt_tuning.decoding.sample import (
    Draws,
    Sampling,
    decode,
    draw_numbers,
    keys_of,
    sampling_arrays,
)
from prompt_tuning.decoding.step import Decoded, StepFn
from prompt_tuning.transformer.vocabulary import EOS

__all__ = [
    "EOS",
    "RANK_MEMORY_GIB",
    "Decoded",
    "Draws",
    "Sampling",
    "StepFn",
    "beam_search",
    "decode",
    "draw_numbers",
    "greedy",
    "keys_of",
    "rank_bytes",
    "sampling_arrays",
    "score",
    "start",
]
