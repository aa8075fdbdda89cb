"""In which dtype the products of a step are, as it is handed to the compiler."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs.plan import lowered_step
from prompt_tuning.t5 import T5Config
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor

CONFIG = T5Config(96, 24, 8, 4, 40, 2, 2, dtype="bfloat16", frozen_dtype="bfloat16")


def operands(config: T5Config, axes: int) -> list[str]:
    """Dtypes of the operands of so many axes in the products of a step."""
    lowered, _ = lowered_step(
        config,
        method=PromptTuning(3, initializer=Uniform()),
        layout=sharding.layout(devices=jax.devices()[:1]),
        lengths={"inputs": 10, "targets": 5},
        batch_size=2,
        optimizer=adafactor,
        loss=Loss(),
        num_microbatches=1,
    )
    products = re.findall(r"dot_general .* : \((.*)\) ->", lowered.as_text())
    return [
        dtype
        for types in products
        for dtype in re.findall(rf"tensor<(?:\d+x){{{axes}}}([a-z]\w*)>", types)
    ]


# float32 logits: the output layer's products, both where its kernel is float32.
@pytest.mark.parametrize(("frozen_dtype", "wide"), [("bfloat16", 1), ("float32", 2), ("int8", 0)])
def test_weights_are_narrow_forward_and_backward(frozen_dtype, wide):
    actual = operands(dataclasses.replace(CONFIG, frozen_dtype=frozen_dtype), 2)
    forward = 2 * 7 + 2 * 11 + 1
    assert len(actual) > 1.5 * forward  # the backward pass is there
    assert actual.count("f32") == wide
    assert actual.count("bf16") == len(actual) - wide


@pytest.mark.parametrize("axes", [2, 3])
def test_all_operands_are_narrow_with_float32_activations(axes):
    config = dataclasses.replace(
        CONFIG, dtype="float32", frozen_dtype="float32", products="bfloat16"
    )
    assert set(operands(config, axes)) == {"bf16"}


def test_frozen_kernels_are_kept_narrow():
    """What products take of them is the same; everything else stays wide."""
    config = dataclasses.replace(CONFIG, dtype="float32", frozen_dtype="float32")
    method = PromptTuning(3, initializer=Uniform())
    narrow = ParamSplit.of(dataclasses.replace(config, products="bfloat16"), method)
    actual = {path for path, leaf in narrow.shapes.items() if leaf.dtype == jnp.bfloat16}
    assert actual == {path for path in narrow.frozen if path.endswith("/kernel")}
    wide = ParamSplit.of(dataclasses.replace(config, products="float32"), method)
    assert {leaf.dtype for leaf in wide.shapes.values()} == {jnp.dtype("float32")}
