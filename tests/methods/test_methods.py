"""The contract of every tuning method."""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from prompt_tuning import families, sharding
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.families import init_shapes
from prompt_tuning.methods import (
    IA3,
    Adapter,
    BitFit,
    ClassLabels,
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
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.t5 import PRESETS, T5, T5Config
from prompt_tuning.testing import (
    check_method,
    random_batch,
    random_leaves,
    rounding,
    tiny_config,
    tiny_gemma,
    tiny_model,
)
from prompt_tuning.testing.methods import logits
from prompt_tuning.training.loop import create_state
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import only_trained
from prompt_tuning.training.step import TrainState, make_train_step
from prompt_tuning.transformer.config import Config, Stack
from prompt_tuning.transformer.paths import flatten, unflatten

CONFIG = tiny_config()
GEMMA = tiny_gemma()
FORWARD = rounding.forward(CONFIG, 3 + 7, 2 + 4)
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
    "lora_and_ia3": Combined([LoRA(2), IA3()]),
    "model_tuning": ModelTuning(),
}
STARTS_AS_BACKBONE = ["lora", "adapter", "pfeiffer", "ia3", "bitfit", "prefix_gated",
                      "prefix_gated_mlp"]  # fmt: skip
MERGED = {"lora", "ia3", "lora_and_ia3"}
FOLDED = {"p_tuning", "p_tuning_lstm", "prefix_mlp", "prefix_gated_mlp", "multitask_prompt"}

VARIANTS = {"decoder_prompt", "p_tuning_lstm", "prefix_gated_mlp", "prefix_gated", "pfeiffer",
            "wayward", "prompt_and_lora"}  # fmt: skip
SLOW = pytest.mark.slow
FAST = {"prefix_tuning"}  # on T5Gemma
FAMILIES = ("t5", "t5gemma")
# The variants take long to compile, on eight devices most others too.
SHARDED = [
    pytest.param(name, marks=() if name in ("prompt_tuning", "prefix_tuning", "lora") else SLOW)
    for name in METHODS
    if name not in VARIANTS
]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *(pytest.param(n, CONFIG, marks=SLOW if n in VARIANTS else (), id=n) for n in METHODS),
        *(
            pytest.param(n, GEMMA, marks=() if n in FAST else SLOW, id=f"{n}-t5gemma")
            for n in METHODS
        ),
    ],
)
def test_contract(name, config):
    check_method(METHODS[name], config)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=SLOW if name in VARIANTS else ()) for name in STARTS_AS_BACKBONE],
)
@pytest.mark.parametrize("config", [CONFIG, pytest.param(GEMMA, marks=SLOW)], ids=FAMILIES)
def test_starts_as_the_backbone(name, config):
    """With the added leaves as their modules initialise them."""
    model = families.model(config, METHODS[name])
    backbone = random_leaves(flatten(nn.unbox(init_shapes(config))))
    tokens = np.ones((1, 2), np.int32)
    initial = jax.jit(model.init)(jax.random.key(0), tokens, tokens, tokens)["params"]
    leaves = flatten(nn.unbox(initial)) | backbone
    alone = logits(families.model(config), unflatten(backbone), random_batch())
    tuned = logits(model, unflatten(leaves), random_batch())
    bound = rounding.forward(config, 3 + 7, 2 + 4)
    np.testing.assert_allclose(tuned, alone, rtol=0, atol=bound * np.abs(alone).max())


def test_only_trained_leaves_are_saved(tmp_path):
    model = tiny_model(METHODS["prompt_and_lora"])
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, model.trained)
    checkpoints.close()
    assert set(flatten(RunCheckpoints(tmp_path).restore(model.trained)[1])) == model.split.trained


def steps(model: TunedModel, count: int, optimizer: optax.GradientTransformation) -> TrainState:
    transform = only_trained(optimizer, model.split)
    step = jax.jit(make_train_step(model.model, model.split, transform, Loss()))
    with sharding.on(model.layout):
        state = create_state(model, transform)
        for i in range(count):
            placed = sharding.put_batch(random_batch(i), model.layout)
            state, _ = step(state, model.frozen, placed, None)
    return state


@pytest.mark.parametrize("config", [CONFIG, pytest.param(GEMMA, marks=SLOW)], ids=FAMILIES)
@pytest.mark.parametrize("name", SHARDED)
def test_eight_devices_give_what_one_gives(name, config):
    """To a thousandth of what two steps of gradient descent change.

    The order of additions differs by much less. Rows that count twice or not at all, or a sum over
    some of the devices, would change a step by far more. Gradients reach 100 on T5 and 1,000 on
    T5Gemma, so the steps are small enough for the second gradient to be near the first: it would
    amplify rounding otherwise.
    """
    optimizer = optax.sgd(1e-4 if config is CONFIG else 1e-5)
    before, one, eight = (
        flatten(trained)
        for trained in (
            tiny_model(METHODS[name], config).trained,
            steps(tiny_model(METHODS[name], config), 2, optimizer).trained,
            steps(
                tiny_model(METHODS[name], config, layout=sharding.layout(2)), 2, optimizer
            ).trained,
        )
    )
    for path, leaf in one.items():
        off = 1e-3 * np.abs(np.asarray(leaf) - before[path]).max()
        off += 4 * rounding.UNIT * np.abs(leaf).max()
        np.testing.assert_allclose(eight[path], leaf, rtol=0, atol=off, err_msg=path)


def test_random_leaves_are_the_same_on_any_mesh():
    one, eight = (
        flatten(initialize(CONFIG, METHODS["prefix_tuning"], layout=layout, seed=3).params)
        for layout in (sharding.layout(devices=jax.devices()[:1]), sharding.layout(2))
    )
    for path, leaf in one.items():
        np.testing.assert_array_equal(eight[path], leaf)


def numpy_leaves(model: TunedModel) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(model.params).items()}


def test_methods_that_merge_and_fold():
    """That both predict the same is part of the contract."""
    for name, method in METHODS.items():
        merges = contextlib.nullcontext()
        if name not in MERGED:
            merges = pytest.raises(ValueError, match="cannot be merged into the backbone")
        with merges:
            method.merge(numpy_leaves(tiny_model(method)))
    assert {name for name, method in METHODS.items() if method.folded() != method} == FOLDED


def counts(cfg: Config) -> dict[str, tuple[Method, int]]:
    """Method and trained parameters by the formulas of the docstrings."""
    enc, dec = cfg.stack("encoder"), cfg.stack("decoder")
    inner = len(cfg.architecture.activations)
    # For each kind of attention block: layers, width D of queries, of keys, widths H head_dim.
    attentions = [
        (layers, stack.width, source.width, stack.heads * stack.head_dim,
         stack.key_heads * stack.head_dim)
        for layers, stack, source in (
            (enc.layers, enc, enc), (dec.layers, dec, dec), (dec.layers, dec, enc))
    ]  # fmt: skip
    heads = enc.heads * enc.layers + 2 * dec.heads * dec.layers
    norms = {False: 1, True: 2}[cfg.architecture.post_norms]
    norm_scales = norms * (2 * enc.layers * enc.width + 3 * dec.layers * dec.width)
    norm_scales += enc.width + dec.width
    p, h, r, m, k, d = 20, 128, 8, 32, 2, enc.width
    prefixes = sum(2 * p * keys * n for n, _, _, _, keys in attentions)

    def adapters(stack: Stack, blocks: int) -> int:
        return (2 * stack.width * m + stack.width + m) * blocks * stack.layers

    lstm = 8 * h * (d + h + 1) + (2 * h + 1) * 2 * h + (2 * h + 1) * d
    return {
        "prompt_tuning": (PromptTuning(p), p * d),
        "decoder_prompt": (PromptTuning(p, decoder_length=5), p * d + 5 * dec.width),
        "p_tuning": (PTuning(p, h), p * d + (d + 1) * h + (h + 1) * h + (h + 1) * d),
        "p_tuning_lstm": (PTuning(p, h, "lstm"), p * d + lstm),
        "prefix_tuning": (PrefixTuning(p), prefixes),
        "prefix_mlp": (
            PrefixTuning(p, h),
            sum(p * w + (w + 1) * h + (h + 1) * 2 * n * keys for n, w, _, _, keys in attentions),
        ),
        "prefix_gated": (PrefixTuning(p, gated=True), prefixes + heads),
        "deep_prompt": (DeepPrompt(p), p * d * enc.layers),
        "warp": (Warp(p, label_ids=[3, 4]), p * d + k * dec.width),
        "lora": (
            LoRA(r),
            sum(n * r * (w + queries + v + keys) for n, w, v, queries, keys in attentions),
        ),
        "adapter": (Adapter(m), adapters(enc, 2) + adapters(dec, 3)),
        "pfeiffer": (Adapter(m, "pfeiffer"), adapters(enc, 1) + adapters(dec, 1)),
        "ia3": (
            IA3(),
            sum(2 * keys * n for n, _, _, _, keys in attentions)
            + sum(stack.hidden * stack.layers for stack in (enc, dec)),
        ),
        "bitfit": (
            BitFit(),
            sum(n * (queries + keys + w) for n, w, _, queries, keys in attentions)
            + sum((inner * stack.hidden + stack.width) * stack.layers for stack in (enc, dec))
            + norm_scales,
        ),
        "multitask_prompt": (MultitaskPrompt(p, ["x", "y", "z"], rank=r), p * d + 3 * r * (p + d)),
    }


@pytest.mark.parametrize(
    "size",
    [
        None,
        "t5gemma_nano",
        *(
            pytest.param(name, marks=pytest.mark.slow)  # tracing up to 48 layers for each method
            for name in PRESETS
            if name.startswith("t5_1_")
        ),
    ],
)
def test_trained_parameters_follow_the_formula(size):
    """By default on a shape whose widths all differ."""
    config = families.preset(size) if size else T5Config(64, 12, 2, 5, 28, 3, 2)
    for name, (method, count) in counts(config).items():
        split = ParamSplit.of(config, method)
        assert split.count(split.trained) == count, name


def test_every_method_of_the_contract_has_a_formula():
    others = {"prefix_gated_mlp", "wayward", "prompt_and_lora", "prefix_lora_adapter",
              "lora_and_ia3", "model_tuning"}  # fmt: skip
    assert METHODS.keys() == counts(CONFIG).keys() | others


def two_tasks() -> TunedModel:
    return tiny_model(MultitaskPrompt(P, ["x", "y"], rank=2, initializer=START))


def test_rows_get_the_prompt_of_their_task():
    model, leaves, data = two_tasks(), numpy_leaves(two_tasks()), random_batch()
    tasks = np.array([0, 1, 1, 0, 1, 0, 0, 1], np.int32)
    mixed = np.asarray(logits(model.model, model.params, data | {"tasks": tasks}))
    for task, prompt in enumerate(model.model.sites.prompts(leaves)):
        params = {path: leaves[path] for path in model.split.backbone} | {PROMPT_PATH: prompt}
        alone = np.asarray(logits(T5(CONFIG, PromptTuning(P)), unflatten(params), data))
        atol = FORWARD * np.abs(alone).max()
        np.testing.assert_allclose(mixed[tasks == task], alone[tasks == task], rtol=0, atol=atol)


LABELS = {"yes": [5, 6], "no": [9]}


@pytest.mark.parametrize(
    ("method", "known", "filled", "message"),
    [
        (Warp(P, initializer=START), {"encode", "labels"}, {"label_ids": (5, 9)}, ""),
        (
            Warp(P, initializer=START),
            {"labels"},
            {},
            "Warp: the task has no label words; .* encode",
        ),
        (Warp(P, initializer=START), {"encode"}, {}, "Warp: the task has no label words"),
        (Warp(P, initializer=START), set(), {}, "Warp: the task has no label words"),
        (Warp(P, initializer=START, label_ids=[7]), set(), {"label_ids": (7,)}, ""),
        (MultitaskPrompt(P, initializer=START), {"tasks"}, {"tasks": ("x", "y")}, ""),
        (MultitaskPrompt(P, ["z"], initializer=START), {"tasks"}, {"tasks": ("z",)}, ""),
        (Wayward(P, initializer=START, text="yes"), {"encode"}, {"token_ids": (5, 6)}, ""),
        (Wayward(P, initializer=START, text="yes"), set(), {}, "Wayward: a vocabulary is needed"),
        (PromptTuning(P, initializer=START), {"encode", "labels", "tasks"}, {"length": P}, ""),
    ],
)
@pytest.mark.parametrize("is_combined", [False, True])
def test_initialize_fills_in_what_depends_on_the_task(
    monkeypatch, method, known, filled, message, is_combined
):
    """As commands do, or says what it was not given."""
    given = {"encode": LABELS.__getitem__, "labels": tuple(LABELS), "tasks": ("x", "y")}
    settings = {name: given[name] for name in known}
    whole, built = Combined([method, LoRA(2)]) if is_combined else method, []

    def of(config: Config, method: Method) -> ParamSplit:
        built.append(method)
        raise KeyboardInterrupt  # the rest would compile

    monkeypatch.setattr(ParamSplit, "of", of)
    expected = ValueError if message else KeyboardInterrupt
    with pytest.raises(expected, match=message or None):
        initialize(CONFIG, whole, layout=None, **settings)
    if not message:
        [made] = built
        part = made.methods[0] if is_combined else made
        assert {name: getattr(part, name) for name in filled} == filled


def test_one_prompt_is_not_that_of_several_tasks():
    """A batch of a mixture names the tasks of its examples."""
    model, tasks = tiny_model(MultitaskPrompt(P, initializer=START)), np.zeros(8, np.int32)
    with pytest.raises(ValueError, match=r"of several tasks, and there is one prompt; give init"):
        logits(model.model, model.params, random_batch() | {"tasks": tasks})


def test_a_batch_must_say_which_of_several_tasks_it_is():
    model = two_tasks()
    with pytest.raises(ValueError, match="does not name the tasks"):
        logits(model.model, model.params, random_batch())
    assert [model.model.sites.task_index(name) for name in ("x", "y")] == [0, 1]
    with pytest.raises(ValueError, match="no prompt for z; available: x, y; see MULTITASK_TASKS"):
        model.model.sites.task_index("z")


def test_wayward_penalty_is_the_mean_squared_distance_from_the_text():
    method = METHODS["wayward"]
    leaves = numpy_leaves(tiny_model(method))
    prompt, table = leaves[PROMPT_PATH], leaves["token_embedder/embedding"]
    by_hand = (((prompt[0] - table[4]) ** 2).sum() + ((prompt[1] - table[7]) ** 2).sum()) / 2
    bound = rounding.rounding(4 * CONFIG.d_model)
    np.testing.assert_allclose(method.penalty(leaves), by_hand, rtol=bound)


def test_wayward_penalty_is_part_of_the_loss():
    """One step of gradient descent goes further by the penalty's gradient, weight * (p - e)."""
    held = dataclasses.replace(METHODS["wayward"], weight=100.0)
    model, free = tiny_model(held), tiny_model(METHODS["prompt_tuning"])
    leaves = numpy_leaves(model)
    prompt, table = leaves[PROMPT_PATH], leaves["token_embedder/embedding"]
    with_penalty, without = (
        np.asarray(flatten(steps(tuned, 1, optax.sgd(1e-3)).trained)[PROMPT_PATH])
        for tuned in (model, free)
    )
    pull = np.zeros_like(prompt)
    pull[:2] = 1e-3 * 100.0 * (prompt[:2] - table[[4, 7]])
    assert np.abs(pull).max() > 0.1
    atol = 2 * rounding.backward(CONFIG, 3 + 7, 4) * np.abs(prompt).max()
    np.testing.assert_allclose(with_penalty, without - pull, rtol=0, atol=atol)


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
        # A text is a list of letters to Python, which would become label words or names.
        (lambda: ClassLabels("positive"), "ClassLabels.labels = 'positive': must be a list"),
        (lambda: ClassLabels([1, 2]), "ClassLabels.labels has 1: must be a list of texts"),
        (lambda: MultitaskPrompt(3, "ab"), "MultitaskPrompt.tasks = 'ab': must be a list"),
        (lambda: LoRA(projections="query"), r"LoRA.projections = 'query': .* \['query'\]"),
        (lambda: LoRA(layers=3), "LoRA.layers = 3: must be a list"),
        (lambda: LoRA(alpha=0), "LORA_ALPHA = 0: the updates would be nothing"),
        (lambda: LoRA(alpha="16"), "LORA_ALPHA = '16': must be a finite number"),
        (lambda: PromptTuning("20"), "PROMPT_LENGTH = '20', .* must be whole numbers"),
        (lambda: PromptTuning(2.5), "PROMPT_LENGTH = 2.5, .* must be whole numbers"),
        (lambda: PromptTuning(True), "PROMPT_LENGTH = True, .* must be whole numbers"),
        (lambda: initialize(CONFIG, LoRA(), layout=None, labels="ab"), "labels = 'ab': must be"),
    ],
)
def test_impossible_settings_are_one_clear_line(method, message):
    with pytest.raises(ValueError, match=message) as error:
        ParamSplit.of(CONFIG, method())
    assert "\n" not in str(error.value)
