"""PEFT adapters: the example's arrays and logits, PEFT's formulas in NumPy, refusals."""

import functools
import json
import pickle
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prompt_tuning.analysis import sources
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.checkpoint.formats import huggingface, peft
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.exchange import adapters, peft_layers
from prompt_tuning.families import init_shapes
from prompt_tuning.methods import IA3, Backbone, FromFile, LoRA, PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.t5 import T5
from prompt_tuning.t5.config import PRESETS, T5Config
from prompt_tuning.testing import assert_mistake, random_leaves, run_command
from prompt_tuning.transformer.paths import flatten, unflatten

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "peft_example"
CONFIG = PRESETS["nano"]
TOKENS = np.array([[5, 9, 3, 1]])
BASE = "base_model.model."
PROMPT = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "SEQ_2_SEQ_LM",
    "num_virtual_tokens": 3,
    "num_transformer_submodules": 2,
    "token_dim": 4,
}
MULTITASK = {**PROMPT, "peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 2, "num_ranks": 2}
LORA = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "r": 2, "lora_alpha": 3}
IA3_CONFIG = {"peft_type": "IA3", "task_type": "SEQ_2_SEQ_LM"}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


ROWS = {"prompt_embeddings": random(6, 4)}
TASKS = ROWS | {
    "prefix_task_cols": random(2, 6, 2, seed=1),
    "prefix_task_rows": random(2, 2, 4, seed=2),
}


def folder(path: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def modules(projections: str) -> list[str]:
    """PEFT's names of projections in both layers of both stacks of a T5."""
    actual = []
    for layer in range(2):
        encoder, decoder = (f"{stack}.block.{layer}.layer." for stack in ("encoder", "decoder"))
        for name in projections.split():
            if name == "wo":
                actual += [f"{encoder}1.DenseReluDense.wo", f"{decoder}2.DenseReluDense.wo"]
            else:
                actual += [f"{encoder}0.SelfAttention.{name}", f"{decoder}0.SelfAttention.{name}"]
                actual.append(f"{decoder}1.EncDecAttention.{name}")
    return actual


def lora_tensors(projections: str = "q v") -> dict[str, np.ndarray]:
    """Updates no larger than the kernels, so that attention does not magnify rounding."""
    return {
        f"{BASE}{module}.lora_{which}.weight": 0.3 * random(*shape, seed=seed)
        for seed, module in enumerate(modules(projections))
        for which, shape in (("A", (2, 16)), ("B", (16, 2)))
    }


def ia3_tensors() -> dict[str, np.ndarray]:
    return {
        f"{BASE}{module}.ia3_l": random(*((1, 32) if module.endswith("wo") else (16, 1)), seed=seed)
        for seed, module in enumerate(modules("k v wo"))
    }


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    return random_leaves(flatten(nn.unbox(init_shapes(CONFIG))))


@functools.cache
def forward(config: T5Config, *method):
    return jax.jit(T5(config, *method).apply)


def logits(leaves: dict[str, np.ndarray], *method) -> np.ndarray:
    params = {"params": unflatten(leaves)}
    return np.asarray(forward(CONFIG, *method)(params, TOKENS, TOKENS, TOKENS))


def added_by(method) -> dict[str, tuple[int, ...]]:
    ours, backbone = (flatten(nn.unbox(init_shapes(CONFIG, *x))) for x in ((method,), ()))
    return {path: x.shape for path, x in ours.items() if path not in backbone}


def shapes(leaves: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {path: x.shape for path, x in leaves.items()}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("submodules", [1, 2, None])
@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING"])
def test_first_rows_are_the_prompt(tmp_path, submodules, kind):
    rows = ROWS["prompt_embeddings"][: 3 * (submodules or 2)]
    config = {**PROMPT, "peft_type": kind, "num_transformer_submodules": submodules}
    path = folder(tmp_path / "adapter", config, {"prompt_embeddings": rows})
    np.testing.assert_array_equal(prompts.load(path), rows[:3])


def test_bfloat16_rows(tmp_path):
    rows = random(6, 4).astype(jnp.bfloat16)
    path = folder(tmp_path / "adapter", PROMPT, {"prompt_embeddings": rows})
    prompt = prompts.load(path)
    assert prompt.dtype == np.float32
    np.testing.assert_array_equal(prompt, rows[:3].astype(np.float32))


@pytest.mark.parametrize("stored", [5, 10])
def test_example_gives_peft_logits(tmp_path, stored):
    """Both forms in which PEFT wrote the example; the logits are PyTorch's in float64."""
    rows = load_file(EXAMPLE / peft.WEIGHTS)["prompt_embeddings"][:stored]
    config = {**PROMPT, "num_virtual_tokens": 5, "token_dim": 32}
    config |= {"num_transformer_submodules": stored // 5}
    path = folder(tmp_path / "adapter", config, {"prompt_embeddings": rows})
    with np.load(EXAMPLE / "arrays.npz") as arrays:
        np.testing.assert_array_equal(rows, arrays["prompt"][:stored])
        tokens = arrays["input_ids"], arrays["decoder_input_ids"], np.maximum(arrays["labels"], 0)
        expected, real = arrays["prompt_logits64"], arrays["labels"] != -100
    config = T5Config(128, 32, 4, 8, 64, 2, 2)
    wanted = flatten(nn.unbox(init_shapes(config)))
    actual = huggingface.tensors_at(EXAMPLE / "backbone.safetensors")
    leaves = huggingface.leaves_of("", actual, shapes(wanted))
    backbone = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    table = Backbone(backbone["token_embedder/embedding"])
    prompt = FromFile(str(path))(5, table, np.random.default_rng(0))
    params = {"params": unflatten(backbone | {PROMPT_PATH: prompt})}
    outputs = forward(config, PromptTuning(length=5))(params, *tokens)
    np.testing.assert_allclose(outputs[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("submodules", [1, 2])
def test_files_as_peft_wrote_them(shared_data, submodules):
    path = shared_data / "peft_example" / ("encoder_rows_only" if submodules == 1 else "")
    with np.load(EXAMPLE / "arrays.npz") as arrays:
        np.testing.assert_array_equal(prompts.load(path, (5, 32)), arrays["prompt"][:5])


def test_prompt_round_trip(tmp_path):
    prompt = random(7, 4)
    peft.save_prompt(tmp_path / "adapter", prompt)
    np.testing.assert_array_equal(prompts.load(tmp_path / "adapter"), prompt)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    wanted = {"num_virtual_tokens": 7, "num_transformer_submodules": 1, "token_dim": 4}
    assert config.items() >= ({**PROMPT, **wanted}).items()
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert sources.source_files([str(tmp_path / "adapter")], "") == [str(tmp_path / "adapter")]
    with pytest.raises(CheckpointError, match="exists"):
        peft.save_prompt(tmp_path / "adapter", prompt)


@pytest.mark.parametrize("task", [0, 1])
def test_multitask_prompt_by_hand(tmp_path, task):
    path = folder(tmp_path / "adapter", MULTITASK, TASKS)
    columns, rows = (TASKS[f"prefix_task_{name}"] for name in ("cols", "rows"))
    factor = np.einsum("pk,kd->pd", columns[task, :3], rows[task])
    expected = TASKS["prompt_embeddings"][:3] * factor
    np.testing.assert_allclose(peft.load_prompt(path, task), expected, rtol=1e-5)


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_lora_computes_pefts_update(tmp_path, plain, rank_stabilised):
    tensors = lora_tensors()
    path = folder(tmp_path / "adapter", {**LORA, "use_rslora": rank_stabilised}, tensors)
    method, leaves = peft_layers.load(path)
    assert isinstance(method, LoRA)
    assert method.projections == ("query", "value")
    assert shapes(leaves) == added_by(method)
    scale = 3 / np.sqrt(2) if rank_stabilised else 3 / 2
    merged = dict(plain)
    for module in modules("q v"):
        a, b = (tensors[f"{BASE}{module}.lora_{which}.weight"] for which in "AB")
        kernel = our_kernel(module)
        merged[kernel] = np.asarray(plain[kernel]) + (scale * (b @ a)).T
    actual = logits(plain | leaves, method)
    np.testing.assert_allclose(actual, logits(merged), rtol=0, atol=1e-5)
    assert np.abs(actual - logits(plain)).max() > 1e-2


def our_kernel(module: str) -> str:
    stack, _, layer, _, _, block, projection = module.split(".")
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    own = "attention" if stack == "encoder" else "self_attention"
    blocks = {"SelfAttention": own, "EncDecAttention": "encoder_decoder_attention"}
    place = f"{stack}/layers_{layer}/{blocks.get(block, 'mlp')}"
    return f"{place}/{names.get(projection, projection)}/kernel"


def test_ia3_computes_pefts_scales(tmp_path, plain):
    tensors = ia3_tensors()
    method, leaves = peft_layers.load(folder(tmp_path / "adapter", IA3_CONFIG, tensors))
    assert method == IA3()
    assert shapes(leaves) == added_by(method)
    merged = dict(plain)
    for module in modules("k v wo"):
        scale = tensors[f"{BASE}{module}.ia3_l"]
        kernel = our_kernel(module)
        # PEFT's weights are [out, in]: [out, 1] scales the output, [1, in] the input.
        merged[kernel] = (np.asarray(plain[kernel]).T * scale).T
    actual = logits(plain | leaves, method)
    np.testing.assert_allclose(actual, logits(merged), rtol=0, atol=1e-5)
    assert np.abs(actual - logits(plain)).max() > 1e-2


@pytest.mark.parametrize("layers", [None, (1,)])
def test_lora_round_trip(tmp_path, layers):
    method = LoRA(2, 3.0, ("query", "out", "wi_0", "wo"), layers)
    sizes = added_by(method)
    leaves = {path: random(*shape, seed=i) for i, (path, shape) in enumerate(sizes.items())}
    peft_layers.save(tmp_path / "adapter", method, leaves)
    again, actual = peft_layers.load(tmp_path / "adapter")
    assert again == method
    assert equal(actual, leaves)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    wanted = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "r": 2, "lora_alpha": 3.0}
    assert config.items() >= wanted.items()
    assert config["target_modules"] == ["o", "q", "wi_0", "wo"]
    assert config["layers_to_transform"] == (None if layers is None else [1])
    assert config["layers_pattern"] == (None if layers is None else ["block"])


A_NAME = f"{BASE}encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
ENCODER = {name: x for name, x in lora_tensors().items() if ".encoder." in name}
NAN = np.full((6, 4), np.nan, np.float32)


@pytest.mark.parametrize(
    ("config", "tensors", "match"),
    [
        ({**PROMPT, "peft_type": "PREFIX_TUNING"}, ROWS, 'peft_type = "PREFIX_TUNING"'),
        ({**PROMPT, "peft_type": ["LORA"]}, ROWS, r'peft_type = \["LORA"\]'),
        ({**PROMPT, "task_type": "CAUSAL_LM"}, ROWS, 'task_type = "CAUSAL_LM"'),
        ({**PROMPT, "task_type": None}, ROWS, "task_type = null"),
        (
            {**PROMPT, "num_virtual_tokens": 4},
            ROWS,
            r"prompt_embeddings: expected \[8, 4\] .*got \[6, 4\]",
        ),
        ({**PROMPT, "num_virtual_tokens": "3"}, ROWS, 'num_virtual_tokens = "3"'),
        ({**PROMPT, "num_virtual_tokens": 10**30}, ROWS, "num_virtual_tokens"),
        ({**PROMPT, "num_transformer_submodules": 1}, ROWS, r"expected \[3, 4\] by num_virt"),
        ({**PROMPT, "token_dim": 8}, ROWS, r"expected \[6, 8\].*token_dim"),
        (PROMPT, {"other": random(6, 4)}, "contains no prompt_embeddings"),
        (PROMPT, {"prompt_embeddings": NAN}, "not finite"),
        (
            PROMPT,
            {"prompt_embeddings": np.ones((6, 4), np.int32)},
            "prompt_embeddings is stored as I32",
        ),
        (MULTITASK, TASKS, "num_tasks = 2: has one prompt per task"),
        ({**MULTITASK, "num_tasks": 1}, TASKS, "prefix_task_cols"),
        ({**LORA, "use_dora": True}, lora_tensors(), "use_dora = true"),
        ({**LORA, "rank_pattern": {"q": 4}}, lora_tensors(), "rank_pattern"),
        ({**LORA, "bias": "all"}, lora_tensors(), 'bias = "all"'),
        ({**LORA, "init_lora_weights": "pissa"}, lora_tensors(), "init_lora_weights"),
        ({**LORA, "lora_alpha": None}, lora_tensors(), "lora_alpha = null"),
        ({**LORA, "lora_alpha": 10**400}, lora_tensors(), "lora_alpha = 100"),
        (
            {**LORA, "r": 4},
            lora_tensors(),
            r"lora_A.weight: expected \[4, any\] by r in .*got \[2, 16\]",
        ),
        (LORA, lora_tensors() | {f"{BASE}shared.lora_embedding_A": NAN}, "shared.lora_embedding_A"),
        (
            LORA,
            lora_tensors() | {A_NAME.replace("block.0", "block.3"): random(2, 16)},
            "no decoder|no enc",
        ),
        (LORA, {**lora_tensors("v"), A_NAME: random(2, 16)}, "target_modules.*SelfAttention.q"),
        (LORA, ENCODER, "target_modules = null: nothing in the decoder"),
        (IA3_CONFIG, {k: v for k, v in ia3_tensors().items() if "wo" not in k}, "k, v and wo"),
        (
            IA3_CONFIG,
            {k: v.reshape(-1, 1) for k, v in ia3_tensors().items()},
            "feedforward_modules",
        ),
    ],
)
def test_refusals_are_one_line(tmp_path, config, tensors, match):
    path = folder(tmp_path / "adapter", config, tensors)
    kind = config["peft_type"]
    with pytest.raises(CheckpointError, match=match) as caught:
        (peft_layers.load if kind in ("LORA", "IA3") else prompts.load)(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}/adapter_")


@pytest.mark.parametrize("content", ["{", "[]", "\udc80", "[" * 100_000])
def test_invalid_config(tmp_path, content):
    path = folder(tmp_path / "adapter", PROMPT, ROWS)
    (path / "adapter_config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"adapter_config.json: not (a|valid) JSON"):
        prompts.load(path)


@pytest.mark.parametrize("absent", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file(tmp_path, absent):
    path = folder(tmp_path / "adapter", PROMPT, ROWS)
    (path / absent).unlink()
    with pytest.raises(CheckpointError, match=f"{absent}: no such file"):
        prompts.load(path)


def test_truncated_weights(tmp_path):
    path = folder(tmp_path / "adapter", PROMPT, ROWS)
    (path / peft.WEIGHTS).write_bytes((path / peft.WEIGHTS).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        prompts.load(path)


class Planted:
    """Creates a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_pickles_are_not_read(tmp_path, name):
    path, mark = folder(tmp_path / "adapter", PROMPT, ROWS), tmp_path / "executed"
    (path / "adapter_model.safetensors").unlink()
    (path / name).write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(CheckpointError, match=r"a pickle|not a whole safetensors"):
        prompts.load(path)
    assert not mark.exists()
    pickle.loads((path / name).read_bytes())
    assert mark.exists(), "the planted pickle would have done nothing"


def test_unknown_task(tmp_path):
    with pytest.raises(CheckpointError, match="has only one prompt"):
        peft.load_prompt(folder(tmp_path / "one", PROMPT, ROWS), 0)
    with pytest.raises(CheckpointError, match="there is no task 2"):
        peft.load_prompt(folder(tmp_path / "two", MULTITASK, TASKS), 2)


def test_command(tmp_path):
    path = folder(tmp_path / "adapter", MULTITASK, TASKS)
    to = tmp_path / "prompt.npy"
    done = run_command(
        "prompt_tuning.adapters", f"--from={path}", f"--to={to}", "--format=prompt", "--task=1"
    )
    assert done.out == f"{to}: 3 vectors, 4 wide\n", done.err
    np.testing.assert_array_equal(np.load(to), peft.load_prompt(path, 1))
    done = run_command("prompt_tuning.adapters", f"--from={path}", f"--to={to}", "--format=prompt")
    assert_mistake(done, "num_tasks = 2")
    assert "--task" in done.err


def test_trained_leaves_round_trip(tmp_path):
    theirs = folder(tmp_path / "theirs", LORA, lora_tensors())
    trained, ours = tmp_path / "trained_best.safetensors", tmp_path / "ours"
    adaptation = adapters.read(str(theirs))
    adapters.write(str(trained), "trained", adaptation)
    assert str(adaptation).startswith("LORA_RANK = 2, LORA_ALPHA = 3")
    # The leaves do not say alpha, without which `eval` would answer in another way.
    card.check_method(trained, "LoRA", {"LoRA.alpha": 3.0, "LoRA.rank": 2})
    with pytest.raises(CheckpointError, match=r"LoRA.alpha = 3.0, not 16.0"):
        card.check_method(trained, "LoRA", {"LoRA.alpha": 16.0})
    with pytest.raises(UserError, match=r"--lora_alpha=2.0: .* was trained with 3.0; give that"):
        adapters.read(str(trained), lora_alpha=2.0)
    again = adapters.read(str(trained), lora_alpha=3.0)
    assert again.method == adaptation.method
    adapters.write(str(ours), "peft", again)
    assert equal(load_file(ours / "adapter_model.safetensors"), lora_tensors())
    with pytest.raises(UserError, match="--lora_alpha"):
        adapters.read(str(trained))


ATTENTIONS = (
    ("encoder", "attention"),
    ("decoder", "self_attention"),
    ("decoder", "encoder_decoder_attention"),
)


@pytest.mark.parametrize("layers", [(0, 1), (0,), (1,), (0, 1, 2, 3)])
def test_leaves_without_a_card_have_the_layers_that_they_are_of(layers, tmp_path):
    """Layers 0 to k are not all of a backbone that may be deeper."""
    modules = [f"{s}/layers_{i}/{a}/lora_query" for i in layers for s, a in ATTENTIONS]
    shapes = {"a": (4, 2), "b": (2, 4)}
    leaves = {f"{m}/{x}": random(*shape) for m in modules for x, shape in shapes.items()}
    save_file(leaves, tmp_path / "trained.safetensors")
    adaptation = adapters.read(str(tmp_path / "trained.safetensors"), lora_alpha=2.0)
    assert str(adaptation).endswith(f"LORA_LAYERS = {layers}")
    adapters.write(str(tmp_path / "adapter"), "peft", adaptation)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == list(layers)


def test_ia3_round_trip(tmp_path):
    theirs = folder(tmp_path / "theirs", IA3_CONFIG, ia3_tensors())
    trained, ours = tmp_path / "trained_best.safetensors", tmp_path / "ours"
    adapters.write(str(trained), "trained", adapters.read(str(theirs)))
    adapters.write(str(ours), "peft", adapters.read(str(trained)))
    assert equal(load_file(ours / "adapter_model.safetensors"), ia3_tensors())
    config = json.loads((ours / "adapter_config.json").read_text())
    assert config["target_modules"] == ["k", "v", "wo"] and config["feedforward_modules"] == ["wo"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder/layers_x/attention/lora_query/a", "is not a leaf of LoRA or IA3"),
        ("encoder/layers_0/lora_query/a", "is not a leaf of LoRA or IA3"),
        ("encoder/layers_0/mlp/lora_wo/b", r"\[2\] is not a leaf of LoRA or IA3"),
        ("a/ia3_key", "is not a leaf of LoRA or IA3"),
        ("encoder/layers_0/attention/ia3_key/scale", "not a whole IA3"),
    ],
)
def test_unknown_leaves(tmp_path, name, message):
    trained = tmp_path / "trained.safetensors"
    save_file({name: random(2)}, trained)
    with pytest.raises(CheckpointError, match=message):
        adapters.read(str(trained), lora_alpha=2.0 if "lora" in name else None)


def test_trained_prompt_to_peft(tmp_path):
    prompt, trained = random(3, 4), tmp_path / "trained_best.safetensors"
    save_file({PROMPT_PATH: prompt}, trained)
    adapters.write(str(tmp_path / "adapter"), "peft", adapters.read(str(trained)))
    np.testing.assert_array_equal(prompts.load(tmp_path / "adapter"), prompt)


def test_formats_that_do_not_fit(tmp_path):
    path = folder(tmp_path / "adapter", IA3_CONFIG, ia3_tensors())
    adaptation = adapters.read(str(path))
    for form, name in (("prompt", "prompt.npy"), ("trained", "a.npy")):
        with pytest.raises(UserError, match=f"{form}"):
            adapters.write(str(tmp_path / name), form, adaptation)
    assert [each.name for each in tmp_path.iterdir()] == ["adapter"]
