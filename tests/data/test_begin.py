"""A vocabulary with a token that begins texts has it in front of every input, and nowhere else."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import prompt_tuning
from prompt_tuning import embedded
from prompt_tuning.checkpoint.formats import huggingface
from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.gemma import PRESETS
from prompt_tuning.testing import tiny_model
from prompt_tuning.transformer.paths import flatten
from prompt_tuning.transformer.vocabulary import SentencePiece

FOLDER = Path(__file__).parents[1] / "fixtures" / "gemma" / "vocabulary"
LENGTHS = {"inputs": 24, "targets": 8}


@pytest.fixture
def data():
    tasks.register_demo_tasks(tasks.vocabulary(FOLDER))
    yield TaskData("demo_reviews", LENGTHS, 4)
    tasks.register_demo_tasks(tasks.vocabulary(embedded.vocabulary()))


def test_inputs_begin_and_targets_do_not(data):
    batch = next(iter(data.train_batches(0)))
    inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    assert (inputs[:, 0] == 2).all() and not (inputs[:, 1:] == 2).any()
    assert not (targets == 2).any()
    [eval_set] = data.eval_sets("validation")
    assert (eval_set.encoder_input_tokens[:, 0] == 2).all()
    assert not (np.asarray(eval_set.label_tokens) == 2).any()
    assert 2 not in data.encode("good")  # what initialisers start from
    # Inputs that are cut keep both ends.
    lengths = (inputs > 0).sum(1)
    assert (inputs[np.arange(4), lengths - 1] == 1).all() and lengths.max() == LENGTHS["inputs"]


def test_a_folder_is_served(tmp_path):
    """Its texts begin too; it is shape, weights and vocabulary in one."""
    config = dataclasses.replace(PRESETS["t5gemma_nano"], vocab_size=600)
    tuned = tiny_model(config=config)
    huggingface.save(tmp_path / "hf", flatten(tuned.params), config)
    shutil.copy(FOLDER / "tokenizer.json", tmp_path / "hf")
    model = prompt_tuning.load(str(tmp_path / "hf"))
    model.add_task("reviews", np.ones((3, 16), np.float32), labels=("good", "bad"))
    [answer] = model.classify(["A dull film."], "reviews")
    assert answer.label in ("good", "bad")
    model.add_task("plain", None)
    ids = [2, *SentencePiece(FOLDER).encode("A dull film."), 1]
    apply = functools.partial(tuned.model.apply, {"params": tuned.params})
    states = apply(jnp.asarray([ids], jnp.int32), method=tuned.model.encode).states
    np.testing.assert_allclose(model.embed(["A dull film."], "plain"), states.mean(1), atol=1e-4)
