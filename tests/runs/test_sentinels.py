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
from prompt_tuning.evaluation.predict import check_as_trained
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


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("answers", [False, True])
def test_first_tokens_of_targets_say_that_they_have_a_sentinel(trained, answers):
    """As `fit` keeps them where a function around `train_batches` hides the data."""
    with clean_registries():
        tasks.register_demo_tasks(tasks.vocabulary(embedded.vocabulary()))
        name, other = (
            sentinel.register("demo_reviews") if has_sentinel else "demo_reviews"
            for has_sentinel in (trained, answers)
        )
        data = TaskData(name, {"inputs": 16, "targets": 8}, 32)
        tokens = frozenset(next(data.train_batches(0))["decoder_target_tokens"][:, 0].tolist())
        tuned = dataclasses.replace(tiny_model(METHOD), first_tokens=tokens)
        eval_set = TaskData(other, {"inputs": 16, "targets": 8}, 32).eval_set("validation")
        if trained == answers:
            check_as_trained(tuned, eval_set)
            return
        with pytest.raises(UserError, match=f"open them with sentinel_targets={trained}"):
            check_as_trained(tuned, eval_set)


def test_serving():
    tuned = tiny_model(config=config(16))
    model = serving.Model(tuned.model.config, tuned.params, Numbers(), tuned.layout)
    with pytest.raises(UserError, match=MESSAGE):
        model.add_task("t", np.ones((2, 16), np.float32), target_prefix="<extra_id_0>")
    model.add_task("t", np.ones((2, 16), np.float32), target_prefix="4")
