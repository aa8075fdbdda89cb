"""How a run chooses its layout."""

import dataclasses

import pytest

from prompt_tuning import methods
from prompt_tuning.errors import UserError
from prompt_tuning.runs import layout as layouts
from prompt_tuning.t5.config import preset

GIB = 2**30
XXL = dataclasses.replace(preset("t5_1_1_xxl"), frozen_dtype="bfloat16")
PROMPT = methods.PromptTuning(100, initializer=methods.Uniform())


def test_parameters_that_are_trained_count_four_times():
    small = preset("nano")
    weights = layouts.parameter_bytes(small, methods.Method())
    prompt = dataclasses.replace(PROMPT, length=10)
    assert layouts.parameter_bytes(small, methods.ModelTuning()) == 4 * weights
    assert layouts.parameter_bytes(small, prompt) == weights + 4 * 4 * 10 * small.d_model


@pytest.mark.parametrize(
    ("devices", "memory", "partitions"),
    [(1, 80, 1), (8, 40, 2), (8, 24, 2), (32, 16, 4), (32, 10, 8), (12, 16, 4)],
)
def test_as_few_partitions_as_leave_half_the_memory(devices, memory, partitions):
    """XXL's 11.1e9 parameters are 20.7 GiB in bfloat16."""
    needed = layouts.parameter_bytes(XXL, PROMPT)
    assert needed == pytest.approx(20.74 * GIB, rel=1e-3)
    actual = layouts.fewest_partitions(XXL, devices, needed, memory * GIB)
    assert actual == partitions


def test_partitions_divide_the_heads():
    small = preset("t5_1_1_small")  # of 6 heads
    assert layouts.fewest_partitions(small, 12, 12, 8) == 3
    assert layouts.fewest_partitions(small, 12, 18, 8) == 6


def test_no_number_is_enough():
    with pytest.raises(UserError, match=r"= 'auto': 20\.75 GiB .* 4 devices of 8\.0"):
        layouts.fewest_partitions(XXL, 4, layouts.parameter_bytes(XXL, PROMPT), 8 * GIB)


def test_devices_that_do_not_tell_their_memory(capsys):
    assert dict(layouts.choose(preset("nano"), PROMPT, "auto").mesh.shape)["model"] == 1
    assert capsys.readouterr().out.startswith("NUM_PARTITIONS = 1: ")


def test_a_text_other_than_auto():
    with pytest.raises(UserError, match="NUM_PARTITIONS = 'many': must be a number, or 'auto'"):
        layouts.choose(preset("nano"), PROMPT, "many")
