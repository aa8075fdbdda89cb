"""The contract of every tuning method."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import decoding, sharding
from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.methods import (
    IA3,
    Adapter,
    BitFit,
    Combined,
    DeepPrompt,
    LoRA,
    ModelTuning,
    MultitaskPrompt,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Uniform,
    Warp,
    Wayward,
)
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.t5 import PRESETS, T5, T5Config, preset
from prompt_tuning.t5.paths import flatten, unflatten
from prompt_tuning.training.loop import create_state
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import only_trained
from prompt_tuning.training.step import TrainState, make_train_step

CONFIG = T5Config(64, 16, 2, 8, 32, 2, 1)
P = 3
START = Uniform()
METHODS = {
    "prompt_tuning": PromptTuning(P, initializer=START),
    "decoder_prompt": PromptTuning(P, initializer=START, decoder_length=2),
    "p_tuning": PTuning(P, hidden=8, initializer=START),
    "p_tuning_lstm": PTuning(P, hidden=8, encoder="lstm", initializer=START),
    "prefix_tuning": PrefixTuning(P),
    "prefix_mlp": PrefixTuning(P, hidden=8),
    "prefix_gated": PrefixTuning(P, gated=True),
    "prefix_gated_mlp": PrefixTuning(P, hidden=8, gated=True),
    "deep_prompt": DeepPrompt(P, initializer=START),
    "warp": Warp(P, initializer=START, label_ids=[5, 9]),
    "lora": LoRA(2, projections=("query", "value", "wo")),
    "adapter": Adapter(4),
    "pfeiffer": Adapter(4, variant="pfeiffer", layers=[1]),
    "ia3": IA3(),
    "bitfit": BitFit(),
    "multitask_prompt": MultitaskPrompt(P, ["x"], rank=2, initializer=START),
    "wayward": Wayward(P, initializer=START, text="a b", token_ids=[4, 7]),
    "prompt_and_lora": Combined([PromptTuning(P, initializer=START), LoRA(2)]),
    "prefix_lora_adapter": Combined([PrefixTuning(P), LoRA(2), Adapter(4), IA3()]),
    "model_tuning": ModelTuning(),
}
STARTS_AS_BACKBONE = ["lora", "adapter", "pfeiffer", "ia3", "bitfit", "prefix_gated",
                      "prefix_gated_mlp"]  # fmt: skip
MERGED = {"lora": METHODS["lora"], "ia3": IA3(), "both": Combined([LoRA(2), IA3()])}
FOLDED = ["p_tuning", "p_tuning_lstm", "prefix_mlp", "prefix_gated_mlp"]

VARIANTS = {"decoder_prompt", "p_tuning_lstm", "prefix_gated_mlp", "prefix_gated", "pfeiffer",
            "wayward", "prompt_and_lora"}  # fmt: skip
SLOW = pytest.mark.slow
# The variants take long to compile, on eight devices most others too.
SHARDED = [
    pytest.param(name, marks=() if name in ("prompt_tuning", "prefix_tuning", "lora") else SLOW)
    for name in METHODS
    if name not in VARIANTS
]

every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if name in VARIANTS else ()) for name in METHODS]
)


def tokens(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Rows of different lengths, 0 behind."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, CONFIG.vocab_size, shape, np.int32)
    lengths = rng.integers(2, shape[1] + 1, (shape[0], 1))
    return np.where(np.arange(shape[1]) < lengths, ids, 0).astype(np.int32)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    targets = tokens(seed + 1, (8, 4))
    return {
        "encoder_input_tokens": tokens(seed, (8, 7)),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    }


@functools.cache
def backbone_file() -> Path:
    """A backbone of random leaves, so that only a method's own are initialised."""
    rng = np.random.default_rng(1)
    path = Path(tempfile.mkdtemp()) / "backbone.safetensors"
    leaves = {}
    for name, leaf in ParamSplit.of(CONFIG, ModelTuning()).shapes.items():
        scale = 1.0 if "embedding" in name else leaf.shape[0] ** -0.5
        noise = scale * rng.normal(size=leaf.shape)
        leaves[name] = (1 + 0.1 * noise if name.endswith("scale") else noise).astype(np.float32)
    backbone.save(path, leaves, "float32")
    return path


@functools.cache
def tuned(name: str, devices: int = 1) -> TunedModel:
    layout = sharding.layout(2 if devices == 8 else 1, devices=jax.devices()[:devices])
    return initialize(CONFIG, METHODS[name], layout=layout, seed=3, checkpoint=backbone_file())


def moved(model: TunedModel, size: float = 0.1) -> TunedModel:
    """With noise on every trained leaf, so that what starts at zero acts."""
    rng = np.random.default_rng(7)
    leaves = {
        path: jax.device_put(leaf + size * rng.normal(size=leaf.shape).astype(np.float32),
                             leaf.sharding)
        for path, leaf in sorted(flatten(model.trained).items())
    }  # fmt: skip
    return dataclasses.replace(model, trained=unflatten(leaves))


def logits(model: T5, params, data=None) -> np.ndarray:
    data = data or batch()
    return np.asarray(model.apply({"params": params}, **data))


def plain(model: TunedModel) -> dict:
    leaves = flatten(model.params)
    return unflatten({path: leaves[path] for path in model.split.backbone})


def numpy_leaves(model: TunedModel) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(model.params).items()}


@functools.cache
def two_steps(name: str, devices: int = 1) -> dict[str, np.ndarray]:
    return flatten(steps(tuned(name, devices), 2).trained)


def steps(model: TunedModel, count: int, optimizer=None) -> TrainState:
    transform = only_trained(optimizer or optax.sgd(0.05), model.split)
    step = jax.jit(make_train_step(model.model, model.split, transform, Loss()))
    with sharding.on(model.layout):
        state = create_state(model, transform)
        for i in range(count):
            placed = sharding.put_batch(batch(i), model.layout)
            state, _ = step(state, model.frozen, placed, None)
    return state


@every_method
def test_backbone_keeps_its_paths_and_shapes(name):
    alone = ParamSplit.of(CONFIG, ModelTuning())
    split = ParamSplit.of(CONFIG, METHODS[name])
    assert split.backbone == frozenset(alone.shapes)
    assert all(split.shapes[path] == alone.shapes[path] for path in split.backbone)


@pytest.mark.parametrize("name", STARTS_AS_BACKBONE)
def test_starts_as_the_backbone(name):
    model = tuned(name)
    np.testing.assert_allclose(
        logits(model.model, model.params), logits(T5(CONFIG), plain(model)), rtol=0, atol=1e-6
    )


@every_method
def test_acts_on_the_logits(name):
    if name != "model_tuning":
        model = moved(tuned(name))
        difference = logits(model.model, model.params) - logits(T5(CONFIG), plain(model))
        assert np.abs(difference).max() > 1e-3


@every_method
def test_steps_move_trained_leaves_alone(name):
    model = tuned(name)
    frozen_before = {path: np.array(leaf) for path, leaf in flatten(model.frozen).items()}
    # The first factor of LoRA and of adapters moves in the second step.
    before, after = flatten(model.trained), two_steps(name)
    assert before.keys() == after.keys() == model.split.trained
    still = [path for path in before if np.array_equal(before[path], after[path])]
    assert not still
    for path, leaf in flatten(model.frozen).items():
        np.testing.assert_array_equal(leaf, frozen_before[path])


@every_method
def test_optimizer_and_checkpoint_hold_trained_leaves_only(name, tmp_path):
    model = tuned(name)
    state = create_state(model, only_trained(optax.adam(0.1), model.split))
    slots = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    trained = [leaf.shape for leaf in flatten(model.trained).values() if leaf.ndim]
    assert sorted(slots) == sorted(2 * trained)
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, model.trained)
    checkpoints.close()
    assert set(flatten(RunCheckpoints(tmp_path).restore(model.trained)[1])) == model.split.trained


@every_method
def test_cached_decoding_agrees_with_teacher_forcing(name):
    model = moved(tuned(name), 0.5)
    inputs = tokens(11, (4, 7))
    made = np.asarray(decoding.greedy(model.model, model.params, jnp.asarray(inputs), 6))
    data = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(made, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": np.maximum(made, 1),
    }
    best = logits(model.model, model.params, data).argmax(-1)
    real = np.cumprod(made > 0, axis=1) > 0  # a padding token that was made ends a row
    assert real.any()
    np.testing.assert_array_equal(best[real], made[real])


@pytest.mark.parametrize("name", SHARDED)
def test_eight_devices_give_what_one_gives(name):
    one, eight = tuned(name), tuned(name, 8)
    for path, leaf in flatten(one.params).items():
        np.testing.assert_array_equal(flatten(eight.params)[path], leaf)
    for path, leaf in two_steps(name).items():
        np.testing.assert_allclose(two_steps(name, 8)[path], leaf, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", MERGED)
def test_merged_backbone_predicts_the_same(name):
    layout, checkpoint = tuned("lora").layout, backbone_file()
    model = moved(initialize(CONFIG, MERGED[name], layout=layout, seed=3, checkpoint=checkpoint))
    merged = MERGED[name].merge(numpy_leaves(model))
    assert merged.keys() == model.split.backbone
    np.testing.assert_allclose(
        logits(T5(CONFIG), unflatten(merged)),
        logits(model.model, model.params),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", FOLDED)
def test_folded_method_predicts_the_same(name):
    model, method = moved(tuned(name)), METHODS[name]
    folded = method.fold(numpy_leaves(model), CONFIG)
    split = ParamSplit.of(CONFIG, method.folded())
    assert folded.keys() == split.shapes.keys()
    np.testing.assert_allclose(
        logits(T5(CONFIG, method.folded()), unflatten(folded)),
        logits(model.model, model.params),
        rtol=1e-5,
        atol=1e-5,
    )


def test_prompt_that_cannot_be_merged_says_so():
    with pytest.raises(ValueError, match="PromptTuning cannot be merged"):
        METHODS["prompt_tuning"].merge({})


def counts(cfg: T5Config) -> dict[str, tuple[Method, int]]:
    """Method and trained parameters by the formulas of the docstrings."""
    d, joined, ff = cfg.d_model, cfg.num_heads * cfg.head_dim, cfg.d_ff
    enc, dec, inner = cfg.num_encoder_layers, cfg.num_decoder_layers, len(cfg.activations)
    attentions, mlps = enc + 2 * dec, enc + dec
    norms = 2 * enc + 3 * dec + 2
    network = 2 * enc * joined, 2 * dec * joined, 2 * dec * joined
    p, h, r, m, k = 20, 128, 8, 32, 2
    lstm = 8 * h * (d + h + 1) + (2 * h + 1) * 2 * h + (2 * h + 1) * d
    return {
        "prompt_tuning": (PromptTuning(p), p * d),
        "decoder_prompt": (PromptTuning(p, decoder_length=5), (p + 5) * d),
        "p_tuning": (PTuning(p, h), p * d + (d + 1) * h + (h + 1) * h + (h + 1) * d),
        "p_tuning_lstm": (PTuning(p, h, "lstm"), p * d + lstm),
        "prefix_tuning": (PrefixTuning(p), 2 * p * joined * attentions),
        "prefix_mlp": (
            PrefixTuning(p, h),
            sum(p * d + (d + 1) * h + (h + 1) * out for out in network),
        ),
        "prefix_gated": (
            PrefixTuning(p, gated=True),
            (2 * p * joined + cfg.num_heads) * attentions,
        ),
        "deep_prompt": (DeepPrompt(p), p * d * enc),
        "warp": (Warp(p, label_ids=[3, 4]), (p + k) * d),
        "lora": (LoRA(r), 2 * r * (d + joined) * attentions),
        "adapter": (Adapter(m), (2 * d * m + d + m) * (attentions + mlps)),
        "pfeiffer": (Adapter(m, "pfeiffer"), (2 * d * m + d + m) * mlps),
        "ia3": (IA3(), 2 * joined * attentions + ff * mlps),
        "bitfit": (
            BitFit(),
            (2 * joined + d) * attentions + (inner * ff + d) * mlps + d * norms,
        ),
        "multitask_prompt": (MultitaskPrompt(p, ["x", "y", "z"], rank=r), p * d + 3 * r * (p + d)),
    }


@pytest.mark.parametrize(
    "size",
    [
        *("demo", "t5_1_1_small"),
        *(
            pytest.param(name, marks=pytest.mark.slow)  # tracing up to 48 layers for each method
            for name in PRESETS
            if name.startswith("t5_1_") and name != "t5_1_1_small"
        ),
    ],
)
def test_trained_parameters_follow_the_formula(size):
    config = preset(size)
    for name, (method, count) in counts(config).items():
        split = ParamSplit.of(config, method)
        assert split.count(split.trained) == count, name


def test_every_method_of_the_contract_has_a_formula():
    others = {"prefix_gated_mlp", "wayward", "prompt_and_lora", "prefix_lora_adapter",
              "model_tuning"}  # fmt: skip
    assert METHODS.keys() == counts(CONFIG).keys() | others


def two_tasks() -> TunedModel:
    method = MultitaskPrompt(P, ["x", "y"], rank=2, initializer=START)
    layout = tuned("lora").layout
    return moved(initialize(CONFIG, method, layout=layout, seed=3, checkpoint=backbone_file()), 0.5)


def test_rows_get_the_prompt_of_their_task():
    model = two_tasks()
    data, tasks = batch(), np.array([0, 1, 1, 0, 1, 0, 0, 1], np.int32)
    mixed = logits(model.model, model.params, data | {"tasks": tasks})
    prompts = model.model.sites.prompts(numpy_leaves(model))
    for task, prompt in enumerate(prompts):
        leaves = {path: numpy_leaves(model)[path] for path in model.split.backbone}
        leaves["encoder/prompt/prompt/prompt"] = prompt
        alone = logits(T5(CONFIG, PromptTuning(P)), unflatten(leaves), data)
        np.testing.assert_allclose(mixed[tasks == task], alone[tasks == task], rtol=0, atol=1e-5)


def test_a_batch_must_say_which_of_several_tasks_it_is():
    model = two_tasks()
    with pytest.raises(ValueError, match="does not say of which task"):
        logits(model.model, model.params)
    assert [model.model.sites.task_index(name) for name in ("x", "y")] == [0, 1]
    with pytest.raises(ValueError, match="no prompt for z; MULTITASK_TASKS = x, y"):
        model.model.sites.task_index("z")


def test_wayward_penalty_is_the_mean_squared_distance_from_the_text():
    model, method = tuned("wayward"), METHODS["wayward"]
    leaves = numpy_leaves(model)
    prompt, table = leaves["encoder/prompt/prompt/prompt"], leaves["token_embedder/embedding"]
    by_hand = (((prompt[0] - table[4]) ** 2).sum() + ((prompt[1] - table[7]) ** 2).sum()) / 2
    np.testing.assert_allclose(method.penalty(leaves), by_hand, rtol=1e-5)
    held = dataclasses.replace(method, weight=100.0)
    split = ParamSplit.of(CONFIG, held)
    near = TunedModel(T5(CONFIG, held), split, model.trained, model.frozen, model.layout)
    after = {
        name: flatten(steps(one, 1, optax.sgd(1e-3)).trained)["encoder/prompt/prompt/prompt"]
        for name, one in {"free": tuned("prompt_tuning"), "near": near}.items()
    }
    rest = {name: np.linalg.norm(prompt[:2] - table[[4, 7]]) for name, prompt in after.items()}
    assert rest["near"] < 0.95 * rest["free"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: LoRA(0), "LORA_RANK = 0"),
        (lambda: LoRA(projections=("q",)), "LORA_PROJECTIONS = .*choose from query, key"),
        (lambda: LoRA(projections=()), "LORA_PROJECTIONS"),
        (lambda: LoRA(layers=[2]), "LORA_LAYERS = .*0 to 1"),
        (lambda: Adapter(0), "ADAPTER_BOTTLENECK = 0"),
        (lambda: Adapter(variant="deep"), "ADAPTER_VARIANT = 'deep'"),
        (lambda: Adapter(layers=[-1]), "ADAPTER_LAYERS"),
        (lambda: PrefixTuning(0), "PREFIX_LENGTH = 0"),
        (lambda: PrefixTuning(hidden=-1), "PREFIX_HIDDEN = -1"),
        (lambda: DeepPrompt(layers=[5]), "DEEP_PROMPT_LAYERS"),
        (lambda: DeepPrompt(0), "PROMPT_LENGTH = 0"),
        (lambda: PTuning(encoder="gru"), "P_TUNING_ENCODER = 'gru'"),
        (lambda: PTuning(hidden=0), "P_TUNING_HIDDEN = 0"),
        (lambda: MultitaskPrompt(tasks=["x", "x"]), "MULTITASK_TASKS"),
        (lambda: MultitaskPrompt(rank=0), "MULTITASK_RANK = 0"),
        (lambda: Wayward(text=" "), "WAYWARD_TEXT"),
        (lambda: PromptTuning(0), "PROMPT_LENGTH = 0"),
        (lambda: PromptTuning(3, decoder_length=-1), "DECODER_PROMPT_LENGTH = -1"),
        (lambda: Combined([LoRA()]), "at least two"),
        (lambda: Warp().for_task(None, ["a"]), "no label words"),
        (lambda: Warp().for_task(lambda _: [3], ["a", "b"]), "different tokens"),
    ],
)
def test_impossible_settings_are_one_clear_line(method, message):
    with pytest.raises(ValueError, match=message) as error:
        ParamSplit.of(CONFIG, method())
    assert "\n" not in str(error.value)
