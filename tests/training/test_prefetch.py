"""Batches that are made ahead of the step, in a thread."""

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning
from prompt_tuning.testing import tiny_config, tiny_model
from prompt_tuning.training import loop
from prompt_tuning.training.prefetch import prefetch


def test_items_come_in_order_and_end():
    assert list(prefetch(iter(range(20)))) == list(range(20))


def test_an_error_comes_at_its_item():
    def source() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("of the third")

    stream = prefetch(source())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="of the third"):
        next(stream)


def test_it_works_ahead_as_far_as_it_may_and_stops_when_closed():
    made, third = [], threading.Event()

    def source() -> Iterator[int]:
        for i in itertools.count():
            made.append(threading.current_thread())
            if i == 3:  # one was taken, two wait, and this is on hand
                third.set()
            yield i

    stream = prefetch(source(), depth=2)
    assert next(stream) == 0
    assert third.wait(timeout=60)
    stream.close()
    assert len(made) == 4
    assert set(made) != {threading.current_thread()}
    assert not made[0].is_alive()


def test_training_places_batches_ahead_in_the_thread(tmp_path, monkeypatch):
    """The step gets arrays of the devices, in the batches' order, and waits for no transfer."""
    placed = []
    real = sharding.put_batch

    def put_batch(batch, layout):
        placed.append((threading.current_thread(), int(batch["encoder_input_tokens"][0, 0])))
        return real(batch, layout)

    monkeypatch.setattr(sharding, "put_batch", put_batch)
    model = tiny_model(PromptTuning(length=2), tiny_config(num_encoder_layers=1))

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for i in itertools.count(start + 3):
            rows = np.full((1, 4), i, np.int32)
            yield {
                "encoder_input_tokens": rows,
                "decoder_input_tokens": np.pad(rows, ((0, 0), (1, 0)))[:, :-1],
                "decoder_target_tokens": rows,
                "decoder_loss_weights": np.ones_like(rows),
            }

    loop.fit(model, model_dir=tmp_path, batches=batches, total_steps=3)
    threads, numbers = zip(*placed, strict=True)
    assert threading.main_thread() not in threads
    assert list(numbers)[:4] == [3, 4, 5, 6]  # one more than the steps: it worked ahead
