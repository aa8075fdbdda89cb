"""A backbone that starts from the teacher's vectors, and pre-training that resumes."""

import dataclasses

import jax
import numpy as np
import pytest

from prompt_tuning import embedded, sharding
from prompt_tuning.methods import ModelTuning
from prompt_tuning.pretraining import start
from prompt_tuning.pretraining.mixture import Mixture, Phase
from prompt_tuning.pretraining.table import Table
from prompt_tuning.runs.pretrain import pretrain
from prompt_tuning.t5.config import preset
from prompt_tuning.trainer import initialize
from prompt_tuning.training.loop import Fit
from prompt_tuning.transformer.paths import flatten

CONFIG = dataclasses.replace(preset("nano"), vocab_size=8_192)


def layout():
    return sharding.layout(devices=jax.devices()[:1])


def test_embedding_and_output_agree_with_the_teacher(table):
    random = initialize(CONFIG, ModelTuning(), layout=layout())
    before = {path: np.array(leaf) for path, leaf in flatten(random.trained).items()}
    after = {
        path: np.array(leaf)
        for path, leaf in flatten(start.from_teacher(random, Table.open(table)).trained).items()
    }
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {start.EMBEDDING, start.OUTPUT}
    vectors = start.reduce(Table.open(table).piece_vectors, CONFIG.d_model)
    rows = after[start.EMBEDDING][: len(vectors)]
    cosines = np.sum(rows * vectors, 1) / np.linalg.norm(rows, axis=1)
    assert np.mean(cosines / np.linalg.norm(vectors, axis=1)) > 0.9
    # The output layer of a piece answers to its own embedding more than to others'.
    logits = rows[:500] @ after[start.OUTPUT][:, :500]
    assert np.mean(np.diag(logits) > np.quantile(logits, 0.95, axis=1)) > 0.9


def test_a_width_above_the_teachers_is_filled_up():
    reduced = start.reduce(np.random.default_rng(0).normal(size=(40, 6)), 10)
    assert reduced.shape == (40, 6)
    assert reduced.std() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("products", ["bfloat16", "float32"])
def test_a_run_that_was_stopped_gives_the_same_leaves(tmp_path, corpus, labelled, table, products):
    mixture = Mixture(
        str(corpus),
        str(labelled),
        str(table),
        embedded.vocabulary(),
        (Phase(2, choices=1.0), Phase(9, pairs=1.0)),
        batch_size=8,
    )

    def run(name: str, *steps: int) -> dict[str, np.ndarray]:
        for total in steps:
            fit = Fit(total_steps=total, learning_rate=0.01)
            tuned = pretrain(
                model_dir=str(tmp_path / name),
                config=dataclasses.replace(CONFIG, products=products),
                layout=layout(),
                mixture=mixture,
                fit=fit,
            )
        return {path: np.array(leaf) for path, leaf in flatten(tuned.trained).items()}

    whole, in_parts = run("whole", 4), run("parts", 1, 3, 4)
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, in_parts[path], err_msg=path)
