"""Published shapes have the published numbers of parameters."""

import dataclasses
import math

import pytest

from prompt_tuning import sharding
from prompt_tuning.families import PRESETS, init_shapes
from prompt_tuning.gemma import StackConfig, T5GemmaConfig
from prompt_tuning.methods import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.transformer.paths import flatten

# keras_hub/src/models/t5gemma/t5gemma_presets.py, "params"
PUBLISHED = {
    "t5gemma_s_s": 312_517_632,
    "t5gemma_b_b": 591_490_560,
    "t5gemma_l_l": 1_241_761_792,
    "t5gemma_xl_xl": 3_766_980_608,
    "t5gemma_2b_2b": 5_596_853_760,
    "t5gemma_9b_2b": 12_292_375_296,
    "t5gemma_9b_9b": 20_333_401_088,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "t5gemma_9b_2b" else pytest.mark.slow)
        for name in PUBLISHED
    ],
)
def test_parameters(name):
    """Of scanned layers, which are the same; one of each stack is traced."""
    split = ParamSplit.of(dataclasses.replace(PRESETS[name], scan_layers=True), Method())
    assert split.count(split.backbone) == PUBLISHED[name]


@pytest.mark.parametrize("mesh", [{"model": 8}, {"fsdp": 4, "model": 2}], ids=str)
def test_the_largest_is_divided_over_the_devices(mesh):
    """Each of eight devices has an eighth, and a tenth of that at most for what is not divided."""
    config = dataclasses.replace(
        PRESETS["t5gemma_9b_9b"], scan_layers=True, frozen_dtype="bfloat16"
    )
    split, layout = ParamSplit.of(config, Method()), sharding.layout(mesh=mesh)
    places = flatten(sharding.shardings_of(init_shapes(config, Method()), layout))
    total = here = 0
    for path, leaf in split.shapes.items():
        total += leaf.size * leaf.dtype.itemsize
        here += math.prod(places[path].shard_shape(leaf.shape)) * leaf.dtype.itemsize
    assert total / 8 <= here <= 1.1 * total / 8


SMALL = StackConfig(16, 2, 32, 4, 2, 8, query_scalar=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StackConfig(16, 2, 32, 4, 3, 8, query_scalar=8), "key_heads = 3: must divide"),
        (lambda: StackConfig(16, 0, 32, 4, 2, 8, query_scalar=8), "layers = 0"),
        (lambda: StackConfig(16, 2, 32, 4, 2, 7, query_scalar=8), "head_dim = 7: must be even"),
        (lambda: dataclasses.replace(SMALL, window=0), "window = 0"),
        (lambda: dataclasses.replace(SMALL, windowed=[True]), "1 values for 2 layers"),
        (lambda: T5GemmaConfig(64, SMALL, SMALL, attention="xla"), "ATTENTION = 'xla'"),
        (lambda: T5GemmaConfig(64, SMALL, SMALL, start_token=64), "start_token = 64"),
        (lambda: T5GemmaConfig(64, SMALL, SMALL, dtype="int4"), "ACTIVATION_DTYPE = 'int4'"),
    ],
)
def test_impossible_shapes_are_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
