"""Frozen means frozen: the backbone's bits, the optimizer's state, a step's work and memory."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import sharding
from prompt_tuning.checkpoint import backbone
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.t5 import T5, preset
from prompt_tuning.testing import random_batch, random_leaves, tiny_config
from prompt_tuning.training.loop import fit
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor, only_trained
from prompt_tuning.training.step import TrainState, make_train_step
from prompt_tuning.transformer.paths import flatten, unflatten

CONFIG = tiny_config()
METHOD = PromptTuning(length=7, initializer=Uniform())
SPLIT = ParamSplit.of(CONFIG, METHOD)


def leaves_at(paths) -> dict[str, np.ndarray]:
    return random_leaves({path: SPLIT.shapes[path] for path in paths})


def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
    return map(random_batch, itertools.count(start))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict[str, np.ndarray], TunedModel, TunedModel]:
    """The backbone on disk, and the model before and after three steps of training."""
    folder = tmp_path_factory.mktemp("run")
    on_disk = leaves_at(SPLIT.backbone)
    backbone.save(folder / "backbone.safetensors", on_disk, dtype="float32")
    layout, checkpoint = sharding.layout(), folder / "backbone.safetensors"
    before = initialize(CONFIG, METHOD, layout=layout, checkpoint=checkpoint)
    # Training donates its state: the prompt that it starts from is kept aside.
    kept = dataclasses.replace(before, trained=jax.tree.map(np.array, before.trained))
    after = fit(before, model_dir=folder / "run", batches=batches, total_steps=3)
    return on_disk, kept, after


def test_training_leaves_the_backbone_bit_identical(run):
    on_disk, _, after = run
    leaves = flatten(after.params)
    assert leaves.keys() == on_disk.keys() | {PROMPT_PATH}
    for path, leaf in on_disk.items():
        assert np.asarray(leaves[path]).tobytes() == leaf.tobytes(), path


def test_training_changes_the_prompt(run):
    _, before, after = run
    old, new = (np.asarray(flatten(tuned.trained)[PROMPT_PATH]) for tuned in (before, after))
    # Three updates of root mean square 0.3, as the clip has it.
    assert 0.1 < np.sqrt(np.mean((new - old) ** 2)) < 0.9 + 1e-3
    assert (new != old).any(axis=1).all()


@pytest.mark.parametrize("full_tree", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [adafactor(), adafactor(factored=True), adafactor(momentum=0.9), optax.adamw(1e-3)],
    ids=["adafactor", "factored", "momentum", "adamw"],
)
def test_optimizer_holds_no_state_of_frozen_leaves(optimizer, full_tree):
    params = unflatten(leaves_at(SPLIT.shapes))
    trained, frozen = SPLIT.split(params)
    state = only_trained(optimizer, SPLIT).init(params if full_tree else trained)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    prompt = SPLIT.shapes[PROMPT_PATH].shape
    assert shapes.isdisjoint(leaf.shape for leaf in jax.tree.leaves(frozen))
    assert {prompt} <= shapes <= {prompt, (), (1,)}  # (1,) are unused slots of Adafactor


@dataclasses.dataclass(frozen=True)
class EveryLeaf(PromptTuning):
    """The same prompted model, with nothing frozen."""

    def trains(self, path: str, added: bool) -> bool:
        return True


# T5 v1.1 small with two layers per stack: batch 8, input 128, target 8, prompt 20.
SMALL = dataclasses.replace(preset("t5_1_1_small"), num_encoder_layers=2, num_decoder_layers=2)
ROWS, INPUT, TARGET, PROMPT = 8, 128, 8, 20
STEPS = {"prompt": PromptTuning(length=PROMPT), "every leaf": EveryLeaf(length=PROMPT)}


def step_and_arguments(method: PromptTuning) -> tuple[Callable, tuple]:
    """A train step and the shapes of its arguments; nothing is allocated."""
    split = ParamSplit.of(SMALL, method)
    optimizer = only_trained(adafactor(), split)
    trained, frozen = split.split(unflatten(split.shapes))
    state = jax.eval_shape(lambda trained: TrainState.create(trained, optimizer), trained)
    lengths = {
        "encoder_input_tokens": INPUT,
        "decoder_input_tokens": TARGET,
        "decoder_target_tokens": TARGET,
    }
    batch = {name: jax.ShapeDtypeStruct((ROWS, n), jnp.int32) for name, n in lengths.items()}
    step = make_train_step(T5(SMALL, method), split, optimizer, Loss())
    return step, (state, frozen, batch, None)


def product_flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Operations of all matrix products in a program without loops."""
    flops = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            products = math.prod(equation.outvars[0].aval.shape)
            flops += 2 * products * math.prod(left[axis] for axis in contracted)
        for parameter in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            flops += product_flops(inner) if hasattr(inner, "eqns") else 0
    return flops


def test_step_leaves_out_the_backbones_gradients():
    """Products are counted exactly.

    A weight's product is computed once forward, and once backward for each of its two factors; a
    frozen weight needs no gradient. An attention product has no weights: three in both cases. The
    first decoder layer's self attention, and the query of its cross attention, do not depend on the
    prompt: a frozen model computes them forward only.
    """
    actual = {}
    for name, method in STEPS.items():
        step, arguments = step_and_arguments(method)
        actual[name] = product_flops(jax.make_jaxpr(step)(*arguments).jaxpr)

    width, heads = SMALL.d_model, SMALL.num_heads * SMALL.head_dim
    encoded, layers = PROMPT + INPUT, 2

    def products(rows: int, sizes: int) -> int:
        return 2 * ROWS * rows * sizes

    def attention(queries: int, keys: int) -> int:
        return 2 * products(queries, keys * heads)  # scores and weighted values

    block = 4 * width * heads + 3 * width * SMALL.d_ff  # self attention and gated feed-forward
    weights = layers * (products(encoded, block) + products(TARGET, block))
    weights += layers * 2 * (products(TARGET, width * heads) + products(encoded, width * heads))
    weights += products(TARGET, width * SMALL.vocab_size)
    attended = layers * (
        attention(encoded, encoded) + attention(TARGET, TARGET) + attention(TARGET, encoded)
    )
    constant = products(TARGET, 5 * width * heads)  # four projections, and the cross query
    constant += 2 * attention(TARGET, TARGET) + products(TARGET, encoded * heads)
    assert actual["every leaf"] == 3 * weights + 3 * attended
    assert actual["prompt"] == 2 * weights + 3 * attended - constant


def test_step_holds_no_copy_of_the_backbone():
    """The gradients of every leaf take as many bytes as the backbone; so does a returned copy."""
    split = ParamSplit.of(SMALL, STEPS["prompt"])
    backbone_bytes = 4 * split.count(split.backbone)
    memory = {}
    for name, method in STEPS.items():
        step, arguments = step_and_arguments(method)
        compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
        memory[name] = compiled.memory_analysis()
    temporary = {name: stats.temp_size_in_bytes for name, stats in memory.items()}
    assert temporary["prompt"] <= temporary["every leaf"] - backbone_bytes
    assert memory["prompt"].output_size_in_bytes < 0.01 * backbone_bytes
    assert memory["every leaf"].output_size_in_bytes > backbone_bytes
