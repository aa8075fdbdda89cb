"""Packed and unpacked batches of the same examples have one loss and one prompt gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import families
from prompt_tuning.data.batching.packing import assign_rows, pack
from prompt_tuning.methods import (
    IA3,
    Adapter,
    BitFit,
    Combined,
    DeepPrompt,
    LoRA,
    MultitaskPrompt,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Warp,
)
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.pretraining.mixture import pad
from prompt_tuning.t5 import T5
from prompt_tuning.testing import tiny_config, tiny_gemma
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.step import loss_fn
from prompt_tuning.transformer.paths import unflatten

P, T, L, EXAMPLES = 3, 24, 10, 6
CONFIG, GEMMA = tiny_config(), tiny_gemma()
METHOD = PromptTuning(length=P)
MODEL = T5(CONFIG, METHOD)
OTHERS = [
    DeepPrompt(P),
    MultitaskPrompt(P),
    PrefixTuning(P),
    PrefixTuning(P, gated=True),
    LoRA(2),
    Combined([METHOD, LoRA(2), PrefixTuning(P)]),
]
# Prompt tuning with more, and methods that change each position by itself.
ALIKE = [PTuning(P, hidden=4), Warp(P, label_ids=[5, 9]), Adapter(4), IA3(), BitFit()]
IDS = st.lists(st.integers(3, 63), min_size=1, max_size=T - P - 2)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ParamSplit.of(CONFIG, METHOD).shapes
    return {path: rng.normal(0, 0.4, leaf.shape).astype("f4") for path, leaf in shapes.items()}


@jax.jit
def value_and_gradient(weights, batch):
    def objective(prompt):
        params = unflatten({**weights, PROMPT_PATH: prompt})
        return loss_fn(MODEL, Loss(), params, batch, None)[0]

    return jax.value_and_grad(objective)(weights[PROMPT_PATH])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(IDS, st.lists(st.integers(3, 63), min_size=1, max_size=L - 2)),
        min_size=EXAMPLES,
        max_size=EXAMPLES,
    )
)
def test_packed_equals_unpacked(weights, examples):
    with_end = [([*source, 1], [*target, 1]) for source, target in examples]
    lengths = [(P + len(source), len(target)) for source, target in with_end]
    rows = assign_rows(lengths, T, L)
    shared = [[with_end[i] for i in row] for row in rows]
    packed = pack(shared, prompt_length=P, input_length=T, target_length=L)
    # Empty rows keep the batch at one compiled shape.
    packed = {key: np.pad(x, ((0, EXAMPLES - len(x)), (0, 0))) for key, x in packed.items()}
    loss, gradient = value_and_gradient(weights, pad(examples, T - P, L))
    packed_loss, packed_gradient = value_and_gradient(weights, packed)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(packed_gradient, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        *((CONFIG, method) for method in OTHERS),
        *(pytest.param(CONFIG, method, marks=pytest.mark.slow) for method in ALIKE),
        (GEMMA, METHOD),
        *(pytest.param(GEMMA, m, marks=pytest.mark.slow) for m in (*OTHERS, *ALIKE)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_method_keeps_packed_examples_apart(config, method):
    rng = np.random.default_rng(0)
    shapes = ParamSplit.of(config, method).shapes
    params = unflatten({path: rng.normal(0, 0.4, x.shape) for path, x in shapes.items()})
    examples = [(rng.integers(3, 64, n), rng.integers(3, 64, m)) for n, m in ((4, 3), (6, 1))]
    with_end = [([*source, 1], [*target, 1]) for source, target in examples]
    packed = pack([with_end], prompt_length=method.positions, input_length=T, target_length=L)
    losses = [
        loss_fn(families.model(config, method), Loss(), params, batch, None)[0]
        for batch in (pad(examples, T - P, L), packed)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), max_size=40))
def test_each_example_is_in_one_row_that_holds_it(lengths):
    rows = assign_rows(lengths, 20, 8)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i][0] for i in row) <= 20
        assert sum(lengths[i][1] for i in row) <= 8


def test_example_longer_than_a_row_is_named():
    with pytest.raises(ValueError, match="example 1 takes 21 and 1"):
        assign_rows([(3, 3), (21, 1)], 20, 8)


def test_packing_takes_a_prefix_only(weights):
    model = T5(CONFIG, PromptTuning(length=P, placement="suffix"))
    batch = pack([[([5, 1], [6, 1])]], prompt_length=P, input_length=T, target_length=L)
    with pytest.raises(ValueError, match="prefix only"):
        loss_fn(model, Loss(), unflatten(weights), batch, None)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([7, 1, 3], [[0, 1], [2]]),
        ([6, 1, 3], [[0, 2, 1]]),
        ([2, 2, 2], [[0], [1, 2]]),
        ([9, 1, 1, 5], [[0, 1], [2, 3]]),
        ([1, 4], [[0, 1], []]),
        ([5, 3], [[0], [1]]),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_an_average_per_sequence_takes_each_packed_example_as_one(lengths, rows, parts):
    """Loss and gradient are those of NumPy's mean over examples of their means over targets; sums
    of ten terms of size 5 in float32 are exact to 10 x 5 x 2^-24.
    """
    rng = np.random.default_rng(0)
    rows = [*rows, []] if len(rows) % parts else rows
    examples = [([3, 1], rng.integers(3, 16, n).tolist()) for n in lengths]
    shared = [[examples[i] for i in row] for row in rows]
    batch = pack(shared, prompt_length=0, input_length=T, target_length=L)
    targets, segments = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
    weights = batch["decoder_loss_weights"]
    logits = rng.normal(size=(len(rows), L, 16)).astype(np.float32)
    loss = Loss(z_loss=0.0, normalizing_factor="AVERAGE_PER_SEQUENCE")

    def total(logits):
        scale = loss.scale(targets, weights, segments)
        values = [
            loss(logits[i::parts], targets[i::parts], weights[i::parts], scale[i::parts])[0]
            for i in range(parts)
        ]
        return sum(values)

    value, gradient = jax.value_and_grad(total)(logits)
    cross_entropy = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, targets[..., None], -1
    ).squeeze(-1)
    places = [segments[i] == n + 1 for i, row in enumerate(rows) for n in range(len(row))]
    row_of = [i for i, row in enumerate(rows) for _ in row]
    means = [cross_entropy[i][place].mean() for i, place in zip(row_of, places, strict=True)]
    np.testing.assert_allclose(value, np.mean(means), atol=10 * 5 * 2**-24)
    share = np.zeros(segments.shape)
    for i, place in zip(row_of, places, strict=True):
        share[i][place] = 1 / place.sum() / len(lengths)
    one_hot = np.eye(16)[targets]
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (probability - one_hot) * share[..., None]
    np.testing.assert_allclose(gradient, expected, atol=10 * 5 * 2**-24)
    if parts == 1:
        whole = loss(jnp.asarray(logits), targets, weights, segments=segments)[0]
        np.testing.assert_allclose(whole, value, atol=10 * 5 * 2**-24)


@pytest.mark.parametrize("factor", [0.01, 0.25, 1, 3])
def test_an_average_per_sequence_is_one_of_any_weights(factor):
    """As NumPy's mean over rows of the means over their targets, by weight."""
    rng = np.random.default_rng(1)
    targets, logits = rng.integers(3, 16, (3, 4)), rng.normal(size=(3, 4, 16)).astype(np.float32)
    weights = np.array([[1, 1, 0, 0], [2, 0.5, 0, 0], [0, 0, 0, 0]], np.float32) * factor
    loss = Loss(z_loss=0.0, normalizing_factor="AVERAGE_PER_SEQUENCE")
    each = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, targets[..., None], -1
    ).squeeze(-1)
    expected = np.mean([np.average(each[i], weights=weights[i]) for i in range(2)])
    np.testing.assert_allclose(
        loss(jnp.asarray(logits), targets, weights)[0], expected, atol=10 * 5 * 2**-24
    )
