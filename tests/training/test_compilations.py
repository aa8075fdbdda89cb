"""A run compiles its step once for each shape of a batch, and its steps transfer nothing."""

import json
import logging
from collections.abc import Iterator

import jax
import numpy as np

from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.testing import tiny_config, tiny_model
from prompt_tuning.training import loop

LENGTHS = (4, 8, 4, 4, 6, 8, 6)


def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
    for length in LENGTHS[start:]:
        rows = np.full((1, 3), 5, np.int32)
        yield {
            "encoder_input_tokens": np.full((1, length), 7, np.int32),
            "decoder_input_tokens": np.pad(rows, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": rows,
            "decoder_loss_weights": np.ones_like(rows),
        }


def test_each_shape_is_compiled_once_and_steps_transfer_nothing(tmp_path, caplog, monkeypatch):
    """All that a step reads is on the device before, and nothing comes back until a log line."""
    take_step = loop._Loop._take_step

    def guarded(self, step: int) -> None:
        with jax.transfer_guard("disallow"):
            take_step(self, step)

    monkeypatch.setattr(loop._Loop, "_take_step", guarded)
    tuned = tiny_model(
        PromptTuning(2, initializer=Uniform()), tiny_config(num_encoder_layers=1, dropout_rate=0.1)
    )
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        loop.fit(tuned, model_dir=tmp_path, batches=batches, total_steps=len(LENGTHS), log_period=1)
    compiled = [line for line in caplog.messages if line.startswith("Compiling jit(train_step)")]
    assert len(compiled) == len(set(LENGTHS))
    logged = (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()
    counts = [json.loads(line)["timing/compilations"] for line in logged]
    assert counts == [1, 2, 2, 2, 3, 3, 3]
