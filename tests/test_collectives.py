"""What devices tell each other in a compiled step."""

import math
import re

import pytest

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.runs import plan as plan_run
from prompt_tuning.t5 import T5Config
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor


def compiled(mesh: dict[str, int]) -> str:
    """The step's text; no array of activations has as many values as a weight matrix."""
    step, _ = plan_run.lowered_step(
        T5Config(96, 24, 8, 4, 40, 2, 2),
        method=PromptTuning(3, initializer=Uniform()),
        layout=sharding.layout(mesh=mesh),
        lengths={"inputs": 10, "targets": 5},
        batch_size=8,
        optimizer=adafactor,
        loss=Loss(),
        num_microbatches=1,
    )
    return step.compile().as_text()


def results(text: str, kind: str) -> list[tuple[int, ...]]:
    """Shapes of the arrays, scalars left out, that the collective operations of a kind return."""
    lines = re.findall(rf"= (.*) {kind}(?:-start)?\(", text)
    shapes = (shape for line in lines for shape in re.findall(r"\w+\[([\d,]+)\]", line))
    return [tuple(map(int, shape.split(","))) for shape in shapes]


def test_devices_that_divide_rows_exchange_the_prompts_gradient_alone():
    text = compiled({"data": 8})
    assert plan_run.collectives(text) == {"all-reduce": 1}
    assert results(text, "all-reduce") == [(3, 24)]


@pytest.mark.parametrize("mesh", [{"data": 4, "model": 2}, {"data": 2, "model": 4}, {"model": 8}])
def test_devices_that_divide_weights_exchange_activations_alone(mesh):
    """Megatron's pattern: sums after each attention and feed-forward layer, and no weight moves."""
    text = compiled(mesh)
    assert set(plan_run.collectives(text)) <= {"all-reduce", "all-gather"}
    rows = 8 // mesh.get("data", 1)
    summed = results(text, "all-reduce")
    # A layer's sums, forward and back: 2 of the encoder, 3 of the decoder, less the first's back.
    assert summed.count((rows, 13, 24)) >= 2 * 2 + 2 * 2
    assert summed.count((rows, 5, 24)) >= 2 * 3 + 2 * 2
    weight = 24 * 32  # the smallest matrix
    assert max(map(math.prod, results(text, "all-gather")), default=0) < weight / 2


def test_fsdp_gathers_each_weight_where_it_is_used():
    gathered = results(compiled({"fsdp": 4, "model": 2}), "all-gather")
    assert {(24, 32 // 2), (24, 40 // 2), (32 // 2, 24), (40 // 2, 24)} <= set(gathered)
