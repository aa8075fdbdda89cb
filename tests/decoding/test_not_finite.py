"""Scores that are not numbers end in one line that names the cause, wherever a model answers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from prompt_tuning import Model, sharding
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import predict
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods import PromptTuning
from prompt_tuning.testing import Numbers, tiny_config, tiny_model
from prompt_tuning.transformer.paths import flatten, unflatten

DATA = EvalSet(
    task="a_task",
    split="test",
    inputs=["3 4", "5"],
    targets=["7", "9"],
    encoder_input_tokens=np.array([[3, 4, 1], [5, 1, 0]], np.int32),
    labels=("7", "9"),
    label_tokens=np.array([[7, 1], [9, 1]], np.int32),
    target_length=2,
    metric_fns=(),
    decode=str,
)
EMBEDDING = "token_embedder/embedding"


def served(tuned: Any) -> Model:
    layout = sharding.layout(devices=jax.devices()[:1])
    backbone = unflatten(tuned.backbone)
    model = Model(tuned.model.config, backbone, Numbers(), layout, batch_size=2)
    model.add_task("a_task", None, ["7", "9"])
    return model


ENTRIES: dict[str, Callable[[Any], Any]] = {
    "rank": lambda tuned: predict.rank_labels(tuned, DATA, 2),
    "generate": lambda tuned: predict.generate(tuned, DATA, 2),
    "classify": lambda tuned: served(tuned).classify(DATA.inputs, "a_task"),
    "call": lambda tuned: served(tuned)(DATA.inputs, "a_task"),
    "generate when served": lambda tuned: served(tuned).generate(
        DATA.inputs, "a_task", max_tokens=2
    ),
    "beams": lambda tuned: served(tuned).generate(DATA.inputs, "a_task", max_tokens=2, beams=2),
    "embed": lambda tuned: served(tuned).embed(DATA.inputs, "a_task"),
}


def changed(path: str, value: float, **config: Any) -> Any:
    """The tiny model with one value of a leaf set, or with a leaf multiplied by `value`."""
    tuned = tiny_model(PromptTuning(2), tiny_config(**config))
    leaves = {name: np.array(leaf) for name, leaf in flatten(tuned.params).items()}
    if np.isfinite(value):
        leaves[path] = leaves[path] * np.float32(value)
    else:
        leaves[path][min(3, len(leaves[path]) - 1), 0] = value
    trained, frozen = tuned.split.split(unflatten(leaves))
    return dataclasses.replace(tuned, trained=trained, frozen=frozen)


@pytest.mark.parametrize(
    ("entry", "path", "value"),
    [
        ("rank", "encoder/layers_0/attention/query/kernel", np.nan),
        ("rank", EMBEDDING, np.nan),
        ("rank", "decoder/logits_dense/kernel", np.nan),
        ("rank", "encoder/prompt/prompt/prompt", np.nan),
        ("generate", "encoder/layers_1/mlp/wo/kernel", np.inf),
        ("generate", "encoder/prompt/prompt/prompt", np.nan),
        ("generate", "decoder/logits_dense/kernel", -np.inf),
        ("classify", EMBEDDING, np.nan),
        ("call", "encoder/layers_1/mlp/wo/kernel", np.inf),
        ("generate when served", "encoder/layers_0/attention/query/kernel", np.nan),
        ("beams", EMBEDDING, np.nan),
        ("beams", "decoder/logits_dense/kernel", np.nan),
        ("beams", "decoder/logits_dense/kernel", -np.inf),
        ("embed", EMBEDDING, np.inf),
    ],
)
def test_a_leaf_that_is_not_finite_is_named(entry, path, value):
    with pytest.raises(UserError) as error:
        ENTRIES[entry](changed(path, value))
    assert f"leaf {path} has a NaN or an infinity" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", ["rank", "generate", "classify", "embed"])
def test_an_overflow_of_float16_is_named(entry):
    """A residual stream above float16's largest number, 65,504."""
    large = changed("encoder/layers_0/mlp/wo/kernel", 1e6, dtype="float16")
    with pytest.raises(UserError, match=r"ACTIVATION_DTYPE = 'float16': .* overflow; use bfloat16"):
        ENTRIES[entry](large)


def test_the_advice_helps():
    ENTRIES["rank"](changed("encoder/layers_0/mlp/wo/kernel", 1e6, dtype="bfloat16"))
