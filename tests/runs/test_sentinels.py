"""Families that are not pre-trained with sentinels refuse them, in every way in."""

import dataclasses
import re

import numpy as np
import pytest

from prompt_tuning import embedded, serving
from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.variants import sentinel
from prompt_tuning.errors import UserError
from prompt_tuning.gemma import PRESETS
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.runs import loading
from prompt_tuning.testing import Numbers, clean_registries, tiny_model
from prompt_tuning.trainer import fit
from prompt_tuning.transformer.config import Config

MESSAGE = re.escape("targets begin with <extra_id_0>, which no t5gemma is pre-trained with")
METHOD = PromptTuning(2, initializer=Uniform())


def config(rows: int = 8_192) -> Config:
    return dataclasses.replace(PRESETS["t5gemma_nano"], vocab_size=rows)


def test_a_command(tmp_path):
    """`train`, `eval`, `infer` and `demo` load their model by `loading.load`, before weights."""
    with clean_registries():
        tasks.register_demo_tasks(tasks.vocabulary(embedded.vocabulary()))
        data = TaskData(sentinel.register("demo_reviews"), {"inputs": 8, "targets": 8}, 2)
        with pytest.raises(UserError, match=MESSAGE):
            loading.load(config(), METHOD, data, tiny_model().layout, checkpoint="/no", seed=0)
        with pytest.raises(UserError, match=MESSAGE):
            fit(
                tiny_model(METHOD, config=config()),
                model_dir=tmp_path,
                batches=data.train_batches,
                learning_rate=0.3,
                total_steps=1,
            )


def test_serving():
    tuned = tiny_model(config=config(16))
    model = serving.Model(tuned.model.config, tuned.params, Numbers(), tuned.layout)
    with pytest.raises(UserError, match=MESSAGE):
        model.add_task("t", np.ones((2, 16), np.float32), target_prefix="<extra_id_0>")
    model.add_task("t", np.ones((2, 16), np.float32), target_prefix="4")
