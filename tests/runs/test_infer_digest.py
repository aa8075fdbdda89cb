"""Which settings a resumed `infer` must have in common with the run that was interrupted."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from prompt_tuning import methods
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runs import infer
from prompt_tuning.testing import tiny_config, tiny_model

TEXTS = EvalSet(
    task="task",
    split="test",
    inputs=("text",),
    targets=("",),
    encoder_input_tokens=np.array([[3, 1]], np.int32),
    labels=(),
    label_tokens=np.zeros((0, 0), np.int32),
    target_length=4,
    metric_fns=(),
    decode=str,
    vocabulary="a",
)
LORA = methods.LoRA(2, 4.0)
PROMPT = methods.PromptTuning(3)


def key(tuned: TunedModel, **fields: Any) -> str:
    return infer._key(tuned, dataclasses.replace(TEXTS, **fields), 4)


@pytest.fixture(scope="module")
def tuned() -> TunedModel:
    return tiny_model(LORA)


def with_method(tuned: TunedModel, method: methods.Method) -> TunedModel:
    """The same leaves under another method."""
    return dataclasses.replace(tuned, model=tuned.model.clone(sites=method))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LORA, methods.LoRA(2, 8.0)),
        (methods.PromptTuning(3), methods.PromptTuning(3, placement="suffix")),
        (
            methods.MultitaskPrompt(3, tasks=("a", "b")),
            methods.MultitaskPrompt(3, tasks=("b", "a")),
        ),
        (methods.Combined((LORA, PROMPT)), methods.Combined((methods.LoRA(2, 8.0), PROMPT))),
    ],
)
def test_other_settings_of_the_method_are_another_run(tuned, first, second):
    one, other, again = (key(with_method(tuned, method)) for method in (first, second, first))
    assert one == again != other


@pytest.mark.parametrize(
    "fields", [{"target_prefix": "<extra_id_0>"}, {"vocabulary": "b"}, {"task": "other"}], ids=str
)
def test_other_texts_are_another_run(tuned, fields):
    assert key(tuned) == key(tuned) != key(tuned, **fields)


def test_another_step_of_the_training_is_another_run(tuned):
    """Also where its leaves round to the same bfloat16."""
    later = jax.tree.map(lambda leaf: leaf * np.float32(1 + 1e-5), tuned.trained)
    assert key(dataclasses.replace(tuned, trained=later)) != key(tuned)


def test_how_a_prompt_was_initialised_does_not_count(tuned):
    uniform, normal = (
        with_method(tuned, methods.PromptTuning(3, initializer=each))
        for each in (methods.Uniform(), methods.SampledVocabulary())
    )
    assert key(uniform) == key(normal)


def test_another_backbone_dtype_is_another_run():
    config = tiny_config()
    other = dataclasses.replace(config, dtype="bfloat16")
    first, second = (tiny_model(LORA, each) for each in (config, other))
    assert key(first) != key(second)
