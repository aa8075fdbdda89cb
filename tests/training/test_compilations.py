"""A run compiles its step once for each shape of a batch, and says so."""

import json
import logging
from collections.abc import Iterator

import jax
import numpy as np

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.model.tuned import initialize
from prompt_tuning.t5 import T5Config
from prompt_tuning.training import loop

LENGTHS = (4, 8, 4, 4, 6, 8, 6)


def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
    for length in LENGTHS[start:]:
        rows = np.full((1, 3), 5, np.int32)
        yield {
            "encoder_input_tokens": np.full((1, length), 7, np.int32),
            "decoder_input_tokens": rows,
            "decoder_target_tokens": rows,
            "decoder_loss_weights": np.ones_like(rows),
        }


def test_one_compilation_a_shape(tmp_path, caplog):
    one = sharding.layout(devices=jax.devices()[:1])
    config = T5Config(32, 8, 1, 4, 16, 1, 1, dropout_rate=0.1)
    tuned = initialize(config, PromptTuning(2, initializer=Uniform()), layout=one)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        loop.fit(tuned, model_dir=tmp_path, batches=batches, total_steps=len(LENGTHS), log_period=1)
    compiled = [line for line in caplog.messages if line.startswith("Compiling jit(train_step)")]
    assert len(compiled) == len(set(LENGTHS))
    logged = (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()
    counts = [json.loads(line)["timing/compilations"] for line in logged]
    assert counts == [1, 2, 2, 2, 3, 3, 3]
