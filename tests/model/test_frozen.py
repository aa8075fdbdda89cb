"""Frozen means frozen: the backbone's bits, the optimizer's state, a step's work and memory."""

import dataclasses
from collections.abc import Iterator

import jax
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
from prompt_tuning.t5 import T5, T5Config, preset
from prompt_tuning.t5.paths import flatten, unflatten
from prompt_tuning.training.loop import fit
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor, only_trained
from prompt_tuning.training.step import TrainState, make_train_step

CONFIG = T5Config(64, 16, 2, 8, 32, 1, 1)
METHOD = PromptTuning(length=7, initializer=Uniform())
SPLIT = ParamSplit.of(CONFIG, METHOD)


def random_leaves(paths) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=SPLIT.shapes[path].shape).astype(np.float32) for path in paths}


def random_batches(start: int) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(start)
    while True:
        targets = rng.integers(3, CONFIG.vocab_size, (8, 5), np.int32)
        yield {
            "encoder_input_tokens": rng.integers(3, CONFIG.vocab_size, (8, 9), np.int32),
            "decoder_target_tokens": targets,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_loss_weights": np.ones_like(targets),
        }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict[str, np.ndarray], TunedModel, TunedModel]:
    """The backbone on disk, and the model before and after three steps of training."""
    folder = tmp_path_factory.mktemp("run")
    on_disk = random_leaves(SPLIT.backbone)
    backbone.save(folder / "backbone.safetensors", on_disk, dtype="float32")
    layout, checkpoint = sharding.layout(), folder / "backbone.safetensors"
    before = initialize(CONFIG, METHOD, layout=layout, checkpoint=checkpoint)
    # Training donates its state: the prompt that it starts from is kept aside.
    kept = dataclasses.replace(before, trained=jax.tree.map(np.array, before.trained))
    after = fit(before, model_dir=folder / "run", batches=random_batches, total_steps=3)
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
    params = unflatten(random_leaves(SPLIT.shapes))
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


SMALL = preset("t5_1_1_small")
BACKBONE_BYTES = 4 * 76_961_152


@pytest.fixture(scope="module")
def compiled() -> dict[str, jax.stages.Compiled]:
    """Steps of T5 small: batch 8, input 128, target 8, prompt 20; nothing is allocated."""
    return {
        "prompt": compiled_step(PromptTuning(length=20)),
        "every leaf": compiled_step(EveryLeaf(length=20)),
    }


def compiled_step(method: PromptTuning) -> jax.stages.Compiled:
    split = ParamSplit.of(SMALL, method)
    optimizer = only_trained(adafactor(), split)
    trained, frozen = split.split(unflatten(split.shapes))
    state = jax.eval_shape(lambda trained: TrainState.create(trained, optimizer), trained)
    lengths = {"encoder_input_tokens": 128, "decoder_input_tokens": 8, "decoder_target_tokens": 8}
    batch = {name: jax.ShapeDtypeStruct((8, n), jnp.int32) for name, n in lengths.items()}
    step = make_train_step(T5(SMALL, method), split, optimizer, Loss())
    return jax.jit(step, donate_argnums=0).lower(state, frozen, batch, None).compile()


def test_step_leaves_out_the_backbones_gradients(compiled):
    """Backward through a frozen layer is half the work: 2/3 of the whole, here 0.67."""
    flops = {name: step.cost_analysis()["flops"] for name, step in compiled.items()}
    assert 0.5 < flops["prompt"] / flops["every leaf"] <= 0.70


def test_step_holds_no_copy_of_the_backbone(compiled):
    memory = {name: step.memory_analysis() for name, step in compiled.items()}
    temporary = {name: stats.temp_size_in_bytes for name, stats in memory.items()}
    assert temporary["prompt"] <= temporary["every leaf"] - BACKBONE_BYTES
    # Nor does it return one.
    assert memory["prompt"].output_size_in_bytes < 1e6
    assert memory["every leaf"].output_size_in_bytes > BACKBONE_BYTES
