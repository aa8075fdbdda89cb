"""The released prompts of T5 v1.1 base, on backbones of its width with random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import sharding
from prompt_tuning.data import metrics
from prompt_tuning.errors import CheckpointError
from prompt_tuning.evaluation.predict import rank_labels
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods import Backbone, FromFile, PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.tuned import initialize
from prompt_tuning.t5 import preset
from prompt_tuning.transformer.paths import flatten

BASE = preset("t5_1_1_base")
NARROW = dataclasses.replace(
    BASE, num_encoder_layers=1, num_decoder_layers=1, vocab_size=512, num_heads=4, d_ff=64
)
ROWS = 8
SET = EvalSet(
    task="made_up",
    split="test",
    inputs=["text"] * ROWS,
    targets=["yes", "no"] * (ROWS // 2),
    encoder_input_tokens=np.random.default_rng(0).integers(3, 512, (ROWS, 16)).astype(np.int32),
    labels=("no", "yes"),
    label_tokens=np.array([[7, 1, 0], [9, 4, 1]], np.int32),
    target_length=3,
    metric_fns=(metrics.accuracy,),
    decode=str,
)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("sst2", NARROW),
        pytest.param("rte", BASE, marks=pytest.mark.slow, id="rte-whole base"),
        pytest.param("mrpc", BASE, marks=pytest.mark.slow, id="mrpc-whole base"),
    ],
)
def test_loads_and_evaluates(shared_data, task, config):
    path = shared_data / "t5" / "pretrained_prompts" / "t5_1_1_lm100k_base" / f"{task}.npy"
    method = PromptTuning(100, initializer=FromFile(str(path)))
    tuned = initialize(config, method, layout=sharding.layout(num_partitions=4))
    np.testing.assert_array_equal(flatten(tuned.trained)[PROMPT_PATH], np.load(path))
    actual = rank_labels(tuned, SET, batch_size=ROWS)
    assert np.isfinite(actual.scores).all()
    texts = [SET.labels[i] for i in actual.scores.argmax(axis=1)]
    correct = [text == target for text, target in zip(texts, SET.targets, strict=True)]
    assert measure(SET, actual)["accuracy"] == np.mean(correct)
    without = dataclasses.replace(tuned, trained=jax.tree.map(jnp.zeros_like, tuned.trained))
    assert np.abs(actual.scores - rank_labels(without, SET, batch_size=ROWS).scores).max() > 1e-3


def test_another_width_is_refused_with_both(shared_data):
    path = shared_data / "t5" / "pretrained_prompts" / "t5_1_1_lm100k_base" / "rte.npy"
    method = PromptTuning(100, initializer=FromFile(str(path)))
    with pytest.raises(CheckpointError, match=r"the prompt is 768 wide, the backbone 16"):
        method.initial_values(Backbone(np.zeros((9, 16), np.float32)), seed=0)
