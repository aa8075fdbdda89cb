"""T5X's networks with a prompt, in T5X's trainer, against this package's and the original code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: make t5x")

import t5x_models
from t5x_models import CONFIG, changed, golden, golden_batch, leaves_of_mini, state_of, trained

from prompt_tuning import decoding
from prompt_tuning.errors import UserError
from prompt_tuning.in_t5x.model import prompted
from prompt_tuning.in_t5x.optimizer import OnlyTrained
from prompt_tuning.in_t5x.our_t5 import tuned as with_our_t5
from prompt_tuning.methods import (
    IA3,
    Adapter,
    BitFit,
    DeepPrompt,
    LoRA,
    PrefixTuning,
    PromptTuning,
)
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5 import T5
from prompt_tuning.testing import random_leaves, rounding
from prompt_tuning.training import optim
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.step import TrainState, make_train_step
from prompt_tuning.transformer.paths import flatten, unflatten

METHOD = PromptTuning(length=10)
BATCH, PROMPT = golden_batch()
REAL = BATCH["decoder_target_tokens"] > 0
TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")


def ours(method, leaves):
    """Logits of this package's network."""
    model = T5(CONFIG, method)
    tokens = [BATCH[name] for name in TOKENS]
    return np.asarray(jax.jit(model.apply)({"params": unflatten(leaves)}, *tokens))


def theirs(tuned, leaves):
    """Logits of a T5X model."""
    return np.asarray(jax.jit(tuned._compute_logits)(unflatten(leaves), BATCH))


@pytest.mark.parametrize("placement", ["prefix", "suffix", "suffix_before_eos", 0, 3])
def test_logits_are_equal(placement):
    """To the last bit: both do the same operations in the same order."""
    method = dataclasses.replace(METHOD, placement=placement)
    leaves = leaves_of_mini(PROMPT)
    actual = theirs(prompted(t5x_models.model(), method), leaves)
    np.testing.assert_array_equal(actual[REAL], ours(method, leaves)[REAL])


def test_scanned_layers():
    """Equal but for rounding: a loop is compiled otherwise than its copies."""
    leaves = leaves_of_mini(PROMPT)
    tuned = prompted(t5x_models.model(scanned=True), METHOD)
    actual, wanted = theirs(tuned, t5x_models.scanned_leaves(leaves)), ours(METHOD, leaves)
    bound = rounding.forward(CONFIG, 10 + BATCH[TOKENS[0]].shape[1], REAL.shape[1])
    np.testing.assert_allclose(
        actual[REAL], wanted[REAL], rtol=0, atol=bound * np.abs(wanted).max()
    )


@pytest.mark.parametrize("scanned", [False, True])
def test_decoding(scanned):
    """Greedy tokens of T5X's cache and search, and its scores of targets."""
    leaves = leaves_of_mini(PROMPT)
    model, params = T5(CONFIG, METHOD), unflatten(leaves)
    tuned = prompted(t5x_models.model(scanned=scanned), METHOD)
    theirs_params = unflatten(t5x_models.scanned_leaves(leaves)) if scanned else params
    length = REAL.shape[1]
    greedy = jax.jit(functools.partial(decoding.greedy, model, length=length))
    actual, _ = jax.jit(tuned.predict_batch_with_aux)(theirs_params, BATCH)
    np.testing.assert_array_equal(actual, greedy(params, BATCH[TOKENS[0]]))
    score = jax.jit(functools.partial(decoding.score, model))
    np.testing.assert_allclose(
        jax.jit(tuned.score_batch)(theirs_params, BATCH),
        score(params, BATCH[TOKENS[0]], BATCH[TOKENS[2]][:, None])[:, 0],
        rtol=1e-5,
    )


def test_golden_steps():
    """Five steps of the original code: its losses, and its prompt.

    The prompt after one step differs by rounding; from then on rounding in the gradient's smallest
    entries moves the prompt by shares of the step, as tests/t5/test_golden.py works out.
    """
    gold = golden("train5_adafactor")
    optimizer = functools.partial(optim.adafactor, pretrained_steps=0)
    tuned = prompted(t5x_models.model(), METHOD, optimizer=optimizer)
    before = leaves_of_mini(gold["prompts"][0])
    losses, after = trained(tuned, state_of(tuned, before), [0.3] * 5)
    np.testing.assert_allclose(losses, gold["losses"][:5], rtol=1e-5)
    np.testing.assert_allclose(after[0][PROMPT_PATH], gold["prompts"][1], atol=1e-5)
    np.testing.assert_allclose(after[4][PROMPT_PATH], gold["prompts"][5], atol=5e-3)
    assert changed(before, after[4]) == {PROMPT_PATH}


OPTIMIZERS = {
    "adafactor": optim.adafactor,
    "adafactor, factored": functools.partial(optim.adafactor, factored=True, momentum=0.9),
    "adamw": optax.adamw,
    "sgd": functools.partial(optax.sgd, momentum=0.9),
    "lion": optax.lion,
    "clipped": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_follow_the_schedule_as_ours_do(name):
    """The rate of each step is T5X's, whose optax wrapper alone would ignore it."""
    rates, optimizer = [0.1, 0.2, 0.05], OPTIMIZERS[name]
    tuned = prompted(t5x_models.model(), METHOD, optimizer=optimizer)
    before = leaves_of_mini(PROMPT)
    losses, after = trained(tuned, state_of(tuned, before), rates)
    split = ParamSplit.of(CONFIG, METHOD)
    prompt, frozen = split.split(unflatten(before))
    ours = optim.only_trained(optimizer(lambda count: jnp.array(rates)[count]), split)
    step = jax.jit(make_train_step(T5(CONFIG, METHOD), split, ours, Loss()))
    state = TrainState.create(prompt, ours)
    for loss, leaves in zip(losses, after, strict=True):
        state, metrics = step(state, frozen, BATCH, None)
        np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
        np.testing.assert_allclose(
            leaves[PROMPT_PATH], flatten(state.trained)[PROMPT_PATH], atol=1e-4
        )


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("num_microbatches", [None, 2])
def test_only_the_prompt_changes(scanned, num_microbatches):
    tuned = prompted(t5x_models.model(scanned=scanned, dropout=0.1), METHOD)
    before = leaves_of_mini(PROMPT)
    if scanned:
        before = t5x_models.scanned_leaves(before)
    _, after = trained(tuned, state_of(tuned, before), [0.3] * 2, num_microbatches=num_microbatches)
    assert changed(before, after[1]) == {PROMPT_PATH}


def test_frozen_gradients_are_not_computed():
    """The compiler drops the gradients that a zero update does not use."""

    def cost(tuned):
        state = state_of(tuned, leaves_of_mini(PROMPT))
        step = functools.partial(
            t5x_models.trainer.train_with_lr, model=tuned, num_microbatches=None
        )
        arguments = {"learning_rate": jnp.float32(0.1), "dropout_rng": jax.random.PRNGKey(0)}
        return jax.jit(step).lower(state, BATCH, **arguments).compile().cost_analysis()["flops"]

    everything = prompted(t5x_models.model(), METHOD)
    everything.optimizer_def = OnlyTrained(optim.adafactor, lambda path: True)
    assert cost(prompted(t5x_models.model(), METHOD)) < 0.8 * cost(everything)


def init(tuned, **more):
    shapes = {name: array.shape for name, array in BATCH.items()} | more
    return jax.eval_shape(lambda: tuned.get_initial_variables(jax.random.PRNGKey(0), shapes))


def values(shape):
    return lambda method: {PROMPT_PATH: np.zeros(shape, np.float32)}


PACKED = {"encoder_segment_ids": BATCH[TOKENS[0]].shape}


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda model: init(prompted(model, METHOD), **PACKED), "utils.DatasetConfig.pack = False"),
        (
            lambda model: init(with_our_t5(model, CONFIG, METHOD), **PACKED),
            "utils.DatasetConfig.pack = False",
        ),
        (
            lambda model: init(prompted(model, METHOD, values((10, 32)))),
            r"the initial value is \(10, 32\), the network's parameter \(10, 24\)",
        ),
        (lambda model: prompted(model, PromptTuning(10, decoder_length=2)), "method.gin"),
        (lambda model: prompted(model, LoRA()), "method.gin trains the other methods"),
        (
            lambda model: with_our_t5(model, CONFIG, PromptTuning(10, decoder_length=2)),
            "T5X's decoding has no room for a prompt in the decoder",
        ),
        (lambda model: with_our_t5(model, CONFIG, LoRA(layers=(7,))), "LORA_LAYERS"),
    ],
    ids=["packing", "packing, ours", "width", "decoder", "LoRA", "decoder, ours", "layers"],
)
def test_refused(make, part):
    with pytest.raises(ValueError, match=part):
        make(t5x_models.model())


METHODS = [
    METHOD,
    LoRA(rank=2),
    PrefixTuning(length=3),
    DeepPrompt(length=3),
    Adapter(bottleneck=4),
    IA3(),
    BitFit(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_other_methods_in_our_network(method):
    """Loss, tokens and what is trained; the leaves are random, so that each of them acts."""
    split = ParamSplit.of(CONFIG, method)
    before = golden("weights") | random_leaves({path: split.shapes[path] for path in split.added})
    tuned = with_our_t5(t5x_models.model(), CONFIG, method, optimizer=optax.adam)
    losses, after = trained(tuned, state_of(tuned, before), [0.01])
    assert changed(before, after[0]) == split.trained
    logits = jnp.asarray(ours(method, before))
    loss, _ = Loss()(logits, BATCH["decoder_target_tokens"], BATCH["decoder_loss_weights"])
    np.testing.assert_allclose(losses[0], loss, rtol=1e-5)
    greedy = jax.jit(functools.partial(decoding.greedy, T5(CONFIG, method), length=REAL.shape[1]))
    actual, _ = jax.jit(tuned.predict_batch_with_aux)(unflatten(before), BATCH)
    np.testing.assert_array_equal(actual, greedy(unflatten(before), BATCH[TOKENS[0]]))


def test_our_network_takes_packed_examples_of_methods_without_positions():
    init(with_our_t5(t5x_models.model(), CONFIG, LoRA(rank=2)), **PACKED)


def test_errors_are_of_the_user():
    with pytest.raises(UserError):
        prompted(t5x_models.model(), LoRA())
