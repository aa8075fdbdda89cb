"""Model, loss, optimizer and train step against arrays of the original code (T5X, Flaxformer).

`mini` and `mini_tied` (random weights) are in tests/fixtures/golden; `tiny` and `t5x_tiny` are
released checkpoints, read from the shared data folder and skipped where there is none.
"""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import decoding
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH, place
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5 import T5, T5Config
from prompt_tuning.t5.network import relative_buckets
from prompt_tuning.testing import rounding as bounds
from prompt_tuning.testing.rounding import UNIT, rounding
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor, only_trained
from prompt_tuning.training.step import TrainState, make_train_step
from prompt_tuning.transformer.paths import unflatten

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"

MINI = T5Config(96, 24, 4, 8, 40, 3, 2)
MINI_TIED = T5Config(96, 24, 4, 8, 40, 3, 2, activations=("relu",), tied_logits=True)
TINY = T5Config(32_128, 4, 2, 2, 8, 2, 2, relative_buckets=4, relative_max_distance=8)
T5X_TINY = T5Config(32_128, 8, 4, 3, 16, 2, 2)
CASES = {"mini": MINI, "mini_tied": MINI_TIED, "tiny": TINY, "t5x_tiny": T5X_TINY}

NORMALIZERS = {
    "none": None,
    "const_10": 10,
    "num_real": "NUM_REAL_TARGET_TOKENS",
    "num_total": "NUM_TOTAL_TARGET_TOKENS",
    "avg_per_seq": "AVERAGE_PER_SEQUENCE",
}

TRAIN5, TRAIN20 = "train5_adafactor", "train20_from_step_1100000"
START_STEP = {TRAIN5: 0, TRAIN20: 1_100_000}
RUNS = [
    ("mini", TRAIN5),
    ("mini", TRAIN20),
    ("mini_tied", TRAIN5),
    ("tiny", TRAIN5),
    ("tiny", TRAIN20),
    ("t5x_tiny", TRAIN5),
]

VARIANTS = {
    "param_scale": {"multiply_by_parameter_scale": True},
    "wd_1e-2": {"weight_decay_rate": 1e-2},
    "momentum_0.9": {"momentum": 0.9},
    "no_clip": {"clipping_threshold": None},
    "no_wd": {"weight_decay_rate": None},
}


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


class Case:
    """A golden model: its arrays, and our model with the same weights."""

    def __init__(self, name: str, folder: Path) -> None:
        self.config = CASES[name]
        self.folder = folder
        self.weights = self.load("weights")
        self.batch = self.load("inputs")
        self.prompt = self.batch.pop("prompt")
        self.targets = self.batch["decoder_target_tokens"]
        self.loss_weights = self.batch["decoder_loss_weights"]
        self.method = PromptTuning(length=len(self.prompt))
        self.model = T5(self.config, self.method)
        inputs = len(self.prompt) + self.batch["encoder_input_tokens"].shape[1]
        lengths = inputs, self.targets.shape[1]
        self.forward = bounds.forward(self.config, *lengths)
        self.backward = bounds.backward(self.config, *lengths)

    def load(self, name: str) -> dict[str, np.ndarray]:
        return arrays(self.folder / f"{name}.npz")

    def params(self, prompt: np.ndarray) -> dict:
        return unflatten({**self.weights, PROMPT_PATH: prompt})

    @functools.cached_property
    def unprompted(self) -> tuple[jax.Array, jax.Array]:
        """Encoder states [B, T, D] and logits [B, L, V]."""
        run = jax.jit(functools.partial(forward, T5(self.config)))
        return run(unflatten(self.weights), self.batch)

    @functools.cached_property
    def prompted(self) -> tuple[jax.Array, jax.Array]:
        """Encoder states [B, P+T, D] and logits [B, L, V]."""
        (_, outputs), _ = self.differentiate(self.prompt)
        return outputs

    @functools.cached_property
    def differentiate(self):
        """A compiled function from a prompt to ((loss, outputs), the loss's gradient)."""

        def objective(prompt, weights):
            params = unflatten({**weights, PROMPT_PATH: prompt})
            states, logits = forward(self.model, params, self.batch)
            loss, _ = Loss()(logits, self.targets, self.loss_weights)
            return loss, (states, logits)

        compiled = jax.jit(jax.value_and_grad(objective, has_aux=True))
        return lambda prompt: compiled(prompt, self.weights)


def forward(model: T5, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Encoder states and logits."""
    variables = {"params": params}
    tokens = [
        batch[f"{key}_tokens"] for key in ("encoder_input", "decoder_input", "decoder_target")
    ]
    states = model.apply(variables, tokens[0], method=model.encode).states
    return states, model.apply(variables, *tokens)


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    name = request.param
    released = name not in ("mini", "mini_tied")
    golden = request.getfixturevalue("shared_data") / "golden" if released else GOLDEN
    return Case(name, golden / name)


def assert_close(ours, gold: np.ndarray, bound: float) -> None:
    """Equal but for rounding: by `bound` times the largest value."""
    np.testing.assert_allclose(ours, gold, rtol=0, atol=bound * np.abs(gold).max())


WITH_AND_WITHOUT_PROMPT = pytest.mark.parametrize("kind", ["unprompted", "prompted"])


@WITH_AND_WITHOUT_PROMPT
def test_encoder_output(case, kind):
    states, _ = getattr(case, kind)
    assert_close(states, case.load(kind)["encoder_output"], case.forward)


@WITH_AND_WITHOUT_PROMPT
def test_logits(case, kind):
    logits, gold = np.asarray(getattr(case, kind)[1]), case.load(kind)
    if "logits" in gold:
        assert_close(logits, gold["logits"], case.forward)
        return
    # Large vocabularies: some columns, and statistics over all of them.
    columns = logits[..., gold["logits_col_ids"]]
    assert_close(columns, gold["logits_cols"], case.forward)
    assert_close(jax.nn.logsumexp(logits, axis=-1), gold["logits_logsumexp"], case.forward)
    assert_close(logits.max(-1), gold["logits_max"], case.forward)
    np.testing.assert_array_equal(logits.argmax(-1), gold["logits_argmax"])


@WITH_AND_WITHOUT_PROMPT
@pytest.mark.parametrize("weighted", ["w", "now"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_loss(case, kind, normalizer, weighted):
    gold, key = case.load(kind), f"{normalizer}__{weighted}"
    weights = case.loss_weights if weighted == "w" else None
    loss = Loss(normalizing_factor=NORMALIZERS[normalizer])
    value, sums = loss(getattr(case, kind)[1], case.targets, weights)
    np.testing.assert_allclose(value, gold[f"loss__{key}"], rtol=case.forward)
    np.testing.assert_allclose(sums["z_loss"], gold[f"zloss__{key}"], rtol=2 * case.forward)
    np.testing.assert_allclose(
        sums["cross_ent_loss"] + sums["z_loss"], value, rtol=rounding(2 * case.targets.size)
    )
    # With avg_per_seq T5X reports the number of sequences; our sums are always over tokens, since
    # `accuracy` and `token_loss`, which are divided by this, are.
    tokens = np.count_nonzero(case.targets) if normalizer == "avg_per_seq" else gold[f"wsum__{key}"]
    assert float(sums["weight_sum"]) == tokens


@WITH_AND_WITHOUT_PROMPT
def test_loss_with_label_smoothing(case, kind):
    logits = getattr(case, kind)[1]
    value, _ = Loss(label_smoothing=0.1)(logits, case.targets, case.loss_weights)
    gold = case.load(kind)["loss__none__w__label_smoothing_0.1"]
    np.testing.assert_allclose(value, gold, rtol=case.forward)


def test_accuracy(case):
    _, sums = Loss()(case.prompted[1], case.targets, case.loss_weights)
    gold = case.load("prompted")["accuracy"]
    np.testing.assert_allclose(sums["accuracy"] / sums["weight_sum"], gold, rtol=2 * UNIT)


def test_accuracy_where_some_targets_are_right(case):
    """The golden accuracies are near 0; here every second row's target is the argmax itself."""
    logits, targets = np.asarray(case.prompted[1]), case.targets.copy()
    targets[::2] = logits[::2].argmax(-1)
    _, sums = Loss()(case.prompted[1], targets, case.loss_weights)
    right = (logits.argmax(-1) == targets) & (case.loss_weights > 0)
    assert float(sums["accuracy"]) == right.sum() > 0


def test_prompt_gradient(case):
    gold = case.load("prompted")
    (loss, _), gradient = case.differentiate(case.prompt)
    np.testing.assert_allclose(loss, gold["loss"], rtol=case.forward)
    assert_close(gradient, gold["grad_prompt"], case.backward)


def test_score(case):
    score = jax.jit(functools.partial(decoding.score, case.model))
    inputs, targets = case.batch["encoder_input_tokens"], case.targets[:, None]
    ours = score(case.params(case.prompt), inputs, targets)
    np.testing.assert_allclose(ours[:, 0], case.load("decode")["score_batch"], rtol=case.forward)


def test_greedy_tokens(case):
    model, inputs = case.model, case.batch["encoder_input_tokens"]
    gold = case.load("decode")["greedy_tokens"][:, 0]
    decode = jax.jit(functools.partial(decoding.greedy, model, length=gold.shape[1]))
    np.testing.assert_array_equal(decode(case.params(case.prompt), inputs), gold)


def with_end_tokens() -> tuple[Case, dict[str, np.ndarray]]:
    """A model that says the end token at different steps, and what the original decodes."""
    case = Case("mini", GOLDEN / "mini")
    gold = arrays(GOLDEN / "mini" / "decode_eos.npz")
    kernel = np.array(case.weights["decoder/logits_dense/kernel"])
    kernel[:, 1] = gold["eos_logits_column"]
    case.weights["decoder/logits_dense/kernel"] = kernel
    return case, gold


def test_greedy_stops_at_the_end_token():
    case, gold = with_end_tokens()
    inputs = case.batch["encoder_input_tokens"]
    decode = jax.jit(functools.partial(decoding.greedy, case.model, length=6))
    tokens = decode(case.params(case.prompt), inputs)
    assert (tokens == 1).any()
    np.testing.assert_array_equal(tokens, gold["greedy_tokens"][:, 0])


def check_beams(case: Case, gold: dict[str, np.ndarray], name: str, beams: int, alpha: float):
    """T5X sorts worst to best, and scores a place that nothing takes -1e7."""
    inputs = case.batch["encoder_input_tokens"]
    length = gold[f"{name}_tokens"].shape[-1]

    @jax.jit
    def search(params):
        step_fn, cache = decoding.start(case.model, params, inputs, length)
        options = {"batch": len(inputs), "beams": beams, "length": length, "alpha": alpha}
        return decoding.beam_search(step_fn, cache, **options)

    actual = search(case.params(case.prompt))
    np.testing.assert_array_equal(actual.tokens[:, ::-1], gold[f"{name}_tokens"])
    scores = np.maximum(actual.scores[:, ::-1], -1e7)
    np.testing.assert_allclose(scores, gold[f"{name}_scores"], rtol=case.forward)


@pytest.mark.parametrize("case", ["mini_tied"], indirect=True)
def test_beams(case):
    check_beams(case, case.load("decode"), "beam4", 4, 0.6)


@pytest.mark.parametrize(
    ("name", "beams", "alpha"),
    [("beam4", 4, 0.6), ("beam4_alpha0", 4, 0.0)],
)
def test_beams_that_finish(name, beams, alpha):
    check_beams(*with_end_tokens(), name, beams, alpha)


@pytest.mark.parametrize(("case", "file"), RUNS, indirect=["case"])
def test_optimizer_steps_on_golden_gradients(case, file):
    """Each step starts from the golden prompt and gradient; only the optimizer's state is ours.

    `v` is a mean with weights 1 - decay = t^-0.8. Late in training that is about 1.5e-5, as a
    difference from 1 in float32 off by up to half of 2^-24, here and in the golden run; early a
    dozen roundings per step remain.
    """
    gold = case.load(file)
    start = START_STEP[file]
    rtol = rounding(12 * len(gold["grads"])) + (UNIT / start**-0.8 if start else 0)
    optimizer = adafactor(pretrained_steps=START_STEP[file])
    update, state = jax.jit(optimizer.update), optimizer.init(gold["prompts"][0])
    for before, after, gradient, v in zip(
        gold["prompts"][:-1], gold["prompts"][1:], gold["grads"], gold["v"], strict=True
    ):
        change, state = update(gradient, state, before)
        np.testing.assert_allclose(before + change, after, rtol=0, atol=of_update(before))
        np.testing.assert_allclose(optax.tree.get(state, "v"), v, rtol=rtol)


def free_of(optimizer, prompts, gradients, off) -> list[np.ndarray]:
    """How far each step can move, per entry, when each gradient so far is off by `off`.

    Adafactor without factors is a function of each entry's own gradients, but for the clipping
    norm. So the optimizer runs on gradients that grow or shrink by `off` in all entries, in each
    combination over the steps; twice the largest change covers what is not linear in it.
    """
    update, runs = jax.jit(optimizer.update), []
    for signs in itertools.product((0, 1, -1), repeat=len(gradients)):
        state, changes = optimizer.init(prompts[0]), []
        for prompt, gradient, size, sign in zip(prompts, gradients, off, signs, strict=True):
            change, state = update(gradient + sign * size * np.sign(gradient), state, prompt)
            changes.append(np.asarray(change))
        runs.append(changes)
    return [2 * np.abs(np.array(step) - step[0]).max(0) for step in zip(*runs, strict=True)]


def of_update(prompt: np.ndarray) -> float:
    """Rounding of a step of 0.3 itself: a mean of squares and a dozen operations, then two sums."""
    return 0.3 * rounding(prompt.size + 12) + 2 * UNIT * np.abs(prompt).max()


@pytest.mark.parametrize(("case", "file"), RUNS, indirect=["case"])
def test_gradient_at_each_golden_prompt(case, file):
    gold = case.load(file)
    for prompt, loss, gradient in zip(gold["prompts"], gold["losses"], gold["grads"], strict=False):
        (ours, _), ours_gradient = case.differentiate(prompt)
        np.testing.assert_allclose(ours, loss, rtol=case.forward)
        assert_close(ours_gradient, gradient, case.backward)


@pytest.mark.parametrize(("case", "file"), RUNS, indirect=["case"])
def test_first_two_train_steps(case, file):
    """Two steps in a row, each from what ours was before.

    The first step is 0.3 sign(g), exact where g is above its rounding, as all entries are. The
    second divides g by the root of past squares: what rounding of both gradients can do to it
    follows from the golden gradients (`free_of`). Later steps are chaotic, for an entry near zero
    moves the prompt by up to 0.3: they are compared one at a time, from golden prompts
    (`test_optimizer_steps_on_golden_gradients`, `test_gradient_at_each_golden_prompt`).
    """
    gold = {name: array[:2] for name, array in case.load(file).items() if array.ndim}
    after = case.load(file)["prompts"][1:3]
    off = [case.backward * np.abs(gradient).max() for gradient in gold["grads"]]
    assert np.abs(gold["grads"][0]).min() > 10 * off[0]
    transform = adafactor(pretrained_steps=START_STEP[file])
    free = free_of(transform, gold["prompts"], gold["grads"], off)
    split = ParamSplit.of(case.config, case.method)
    optimizer = only_trained(transform, split)
    step = jax.jit(make_train_step(case.model, split, optimizer, Loss()))
    trained, frozen = split.split(case.params(case.prompt))
    state = TrainState.create(trained, optimizer)
    for prompt, loss, moves in zip(after, gold["losses"], free, strict=True):
        state, metrics = step(state, frozen, case.batch, None)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=case.forward)
        off_by = np.abs(state.trained["encoder"]["prompt"]["prompt"]["prompt"] - prompt)
        assert (off_by <= moves + 2 * of_update(prompt)).all()
        assert np.median(moves) < 1e-3  # against steps of 0.3


@pytest.mark.parametrize("variant", VARIANTS)
def test_optimizer_variants(case, variant):
    """One setting changed; each step starts from the golden prompt, with our gradient there."""
    gold = case.load("train3_variants")
    prompts, losses = gold[f"prompts__{variant}"], gold[f"losses__{variant}"]
    optimizer = adafactor(pretrained_steps=0, **VARIANTS[variant])
    update, state = jax.jit(optimizer.update), optimizer.init(prompts[0])
    at_prompts = [case.differentiate(prompt) for prompt in prompts[:-1]]
    gradients = [np.asarray(gradient) for _, gradient in at_prompts]
    off = [2 * case.backward * np.abs(gradient).max() for gradient in gradients]
    free = free_of(optimizer, prompts[:-1], gradients, off)
    for k, ((loss, _), gradient) in enumerate(at_prompts):
        np.testing.assert_allclose(loss, losses[k], rtol=case.forward)
        change, state = update(gradient, state, prompts[k])
        off_by = np.abs(prompts[k] + change - prompts[k + 1])
        assert (off_by <= free[k] + of_update(prompts[k])).all()


@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (4, 8)])
def test_relative_buckets(buckets, distance, direction):
    gold = arrays(GOLDEN / "units" / "relpos_buckets.npz")
    position = gold["relative_position"]
    ours = relative_buckets(position, direction == "bidirectional", buckets, distance)
    np.testing.assert_array_equal(ours, gold[f"buckets{buckets}_max{distance}_{direction}"])


# Shape to the final slots to compare; the first, second and fourth are in tests/data.
UNIT_SLOTS = {
    "small": ("v",),
    "p100_h64": (),
    "p100_h136": ("v",),
    "p128_h128": ("v_row", "v_col"),
    "p130_h136": ("v_row", "v_col"),
}


@pytest.mark.parametrize(("shape", "slots"), UNIT_SLOTS.items())
def test_adafactor_alone(request, shape, slots):
    """T5X factors by size even where its rules say not to: `factored=True` is what it does."""
    gold = unit_arrays(request, shape)
    optimizer = adafactor(pretrained_steps=0, factored=True)
    update, value = jax.jit(optimizer.update), gold["init"]
    state = optimizer.init(value)
    for gradient in gold["grads"]:
        change, state = update(gradient, state, value)
        value = value + change
    np.testing.assert_allclose(value, gold["after"], rtol=0, atol=3 * of_update(value))
    for slot in slots:
        bound = rounding(3 * (12 + max(value.shape)))
        np.testing.assert_allclose(optax.tree.get(state, slot), gold[slot], rtol=bound)


@pytest.mark.parametrize("shape", ["small", "p128_h128"])
def test_unfactored_is_the_default(request, shape):
    gold = unit_arrays(request, shape)
    assert optax.tree.get(adafactor().init(gold["init"]), "v").shape == gold["init"].shape


def unit_arrays(request, shape: str) -> dict[str, np.ndarray]:
    """init, grads [3, ...], after (the last step) and the final state of one shape."""
    ours = shape in ("small", "p100_h64", "p128_h128")
    golden = GOLDEN if ours else request.getfixturevalue("shared_data") / "golden"
    unit = {
        key.removeprefix(f"{shape}__"): value
        for key, value in arrays(golden / "units" / "adafactor.npz").items()
        if key.startswith(f"{shape}__")
    }
    if "grads" not in unit:
        unit["grads"] = [unit[f"grad{k}"] for k in range(3)]
    after = unit["after3"] if "after3" in unit else unit["after"][-1]
    return unit | {"after": after}


@pytest.mark.parametrize(
    ("placement", "name"),
    [
        ("prefix", "prefix"),
        (1, "prefix_after_bos"),
        ("suffix_before_eos", "suffix_before_eos"),
        ("suffix", "suffix_after_eos"),
    ],
)
def test_placement(placement, name):
    gold = arrays(GOLDEN / "units" / "combine.npz")
    embedded, tokens = gold["embedded"], gold["tokens"]
    ours, mask = place(embedded, tokens > 0, jnp.asarray(gold["prompt"]), placement)
    np.testing.assert_array_equal(ours, gold[name])
    # Embeddings are distinct, so the golden rows tell which positions are padding.
    padding = embedded[tokens == 0]
    expected = [[(row == padding).all(-1).any() for row in rows] for rows in gold[name]]
    np.testing.assert_array_equal(mask, ~np.array(expected))


@pytest.mark.parametrize(
    "setting",
    [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}, {"z_loss": np.nan}]
    + [{"normalizing_factor": value} for value in (0, -1.0, "SILLY")],
)
def test_impossible_loss_settings_are_errors(setting):
    with pytest.raises(ValueError, match=r"LABEL_SMOOTHING|Z_LOSS|LOSS_NORMALIZING_FACTOR"):
        Loss(**setting)
