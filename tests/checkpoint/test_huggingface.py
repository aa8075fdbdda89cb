"""Hugging Face's T5 checkpoints and `python -m prompt_tuning.convert`.

tests/exchange/test_peft_example.py compares logits with PyTorch's. The layouts are compared with a
checkpoint that transformers wrote.
"""

import functools
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from prompt_tuning import families, sharding
from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.formats import huggingface, t5x
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.exchange.conversion import FORMATS, convert
from prompt_tuning.gemma.config import StackConfig, T5GemmaConfig
from prompt_tuning.methods.base import Method
from prompt_tuning.model.tuned import initialize
from prompt_tuning.t5 import T5Config, preset
from prompt_tuning.t5 import huggingface as t5_names
from prompt_tuning.testing import run_command

WRITTEN_BY_TRANSFORMERS = Path(__file__).parents[1] / "fixtures" / "peft_example"
EXAMPLE = T5Config(128, 32, 4, 8, 64, 2, 2, dropout_rate=0.1)
NANO = preset("nano")  # T5 v1.1
# T5 v1.0, with a decoder of another depth and num_heads * head_dim unequal to d_model.
TIED = T5Config(96, 16, 3, 4, 24, 1, 2, activations=("relu",), tied_logits=True)
CONFIGS = {"v1.1": NANO, "v1.0": TIED}
LM_HEAD, SHARED = "lm_head.weight", "shared.weight"


def random_leaves(config: T5Config, dtype="float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = huggingface.shapes_of(config)
    return {path: rng.normal(size=shape).astype(jnp.dtype(dtype)) for path, shape in shapes.items()}


def structs(config: T5Config, dtype="float32") -> dict[str, jax.ShapeDtypeStruct]:
    shapes = huggingface.shapes_of(config)
    return {path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for path, shape in shapes.items()}


def assert_same(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def changed(folder: Path, change) -> None:
    """Rewrites the tensors of a saved folder."""
    tensors = load_file(folder / huggingface.SINGLE)
    change(tensors)
    save_file(tensors, folder / huggingface.SINGLE)


@pytest.fixture(params=CONFIGS)
def config(request) -> T5Config:
    return CONFIGS[request.param]


@pytest.fixture
def saved(tmp_path) -> Path:
    huggingface.save(tmp_path / "hf", random_leaves(NANO), NANO)
    return tmp_path / "hf"


@pytest.fixture
def saved_tied(tmp_path) -> Path:
    huggingface.save(tmp_path / "tied", random_leaves(TIED), TIED)
    return tmp_path / "tied"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ours_to_theirs_and_back(config, dtype, tmp_path):
    leaves = random_leaves(config, dtype)
    huggingface.save(tmp_path / "hf", leaves, config)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "config.json",
        "hf",
        "model.safetensors",
    ]
    assert_same(backbone.load(tmp_path / "hf", structs(config, dtype)), leaves)
    assert families.read(tmp_path / "hf") == config


def test_theirs_to_ours_and_back(tmp_path):
    """Names, layouts and values are those that transformers wrote."""
    source = WRITTEN_BY_TRANSFORMERS / "backbone.safetensors"
    leaves = backbone.load(source, structs(EXAMPLE))
    huggingface.save(tmp_path / "hf", leaves, EXAMPLE)
    assert_same(load_file(tmp_path / "hf" / huggingface.SINGLE), load_file(source))


def test_names_of_v1_0(saved_tied):
    """Names listed by hand from transformers' modules, since its own checkpoint is v1.1."""
    block = [
        "SelfAttention.q",
        "SelfAttention.k",
        "SelfAttention.v",
        "SelfAttention.o",
        "layer_norm",
    ]
    feed = ["DenseReluDense.wi", "DenseReluDense.wo", "layer_norm"]
    table = ["SelfAttention.relative_attention_bias"]
    expected = ["shared", "encoder.final_layer_norm", "decoder.final_layer_norm"]
    expected += [f"encoder.block.0.layer.0.{name}" for name in block + table]
    expected += [f"encoder.block.0.layer.1.{name}" for name in feed]
    for layer in "01":
        own = block + table if layer == "0" else block
        across = [name.replace("SelfAttention", "EncDecAttention") for name in block]
        for i, names in enumerate((own, across, feed)):
            expected += [f"decoder.block.{layer}.layer.{i}.{name}" for name in names]
    actual = load_file(saved_tied / huggingface.SINGLE)
    assert sorted(actual) == sorted(f"{name}.weight" for name in expected)
    assert actual["encoder.block.0.layer.1.DenseReluDense.wi.weight"].shape == (24, 16)


def test_config_is_what_transformers_wrote(shared_data, tmp_path):
    huggingface.save(tmp_path / "hf", random_leaves(EXAMPLE), EXAMPLE)
    theirs = json.loads((shared_data / "peft_example" / "backbone_config.json").read_text())
    ours = json.loads((tmp_path / "hf" / families.CONFIG).read_text())
    assert ours.pop("torch_dtype") == "float32"
    assert ours == theirs


def test_dtype_and_sharding_that_are_asked_for(saved):
    mesh = sharding.layout(num_partitions=2).mesh
    where = NamedSharding(mesh, PartitionSpec(None, "model"))
    path = "encoder/layers_0/mlp/wi_0/kernel"
    wanted = structs(NANO)
    wanted[path] = jax.ShapeDtypeStruct(wanted[path].shape, jnp.bfloat16, sharding=where)
    got = backbone.load(saved, wanted)[path]
    assert got.dtype == jnp.bfloat16 and got.sharding == where
    np.testing.assert_array_equal(got, random_leaves(NANO)[path].astype(jnp.bfloat16))


def test_mixed_dtypes_are_written_in_their_common_dtype(tmp_path):
    leaves = random_leaves(NANO, "bfloat16")
    kept = "encoder/layers_0/mlp/wo/kernel"
    leaves[kept] = random_leaves(NANO)[kept]
    huggingface.save(tmp_path / "hf", leaves, NANO)
    got = backbone.load(tmp_path / "hf", structs(NANO))
    assert_same(got, {path: leaf.astype(np.float32) for path, leaf in leaves.items()})


def test_shards_and_index(config, tmp_path):
    leaves = random_leaves(config)
    limit = 4096
    huggingface.save(tmp_path / "hf", leaves, config, shard_bytes=limit)
    index = json.loads((tmp_path / "hf" / huggingface.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in leaves.values())
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2 and {path.name for path in files} == set(index["weight_map"].values())
    for path in files:
        held = load_file(path)
        assert held.keys() == {n for n, f in index["weight_map"].items() if f == path.name}
        assert len(held) == 1 or sum(x.nbytes for x in held.values()) <= limit
    for place in (tmp_path / "hf", tmp_path / "hf" / huggingface.INDEX):
        assert_same(backbone.load(place, structs(config)), leaves)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {SHARED: "../hf/model.safetensors"}}, "is not a .safetensors file beside"),
        ({"weight_map": {SHARED: "model.bin"}}, "'model.bin' is not a .safetensors file"),
        ({"weight_map": {SHARED: "other.safetensors"}}, "other.safetensors: no such file"),
        ({"weight_map": {"x.weight": "a.safetensors"}}, "x.weight is not in a.safetensors"),
        ({}, "contains no weight_map"),
        ([], "not a JSON object"),
    ],
)
def test_bad_index(saved, index, message):
    (saved / huggingface.SINGLE).rename(saved / "a.safetensors")
    (saved / huggingface.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        backbone.load(saved, structs(NANO))


def test_copies_of_the_embedding(saved_tied):
    """Checkpoints of 2020 contain them, and an unused table."""
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", LM_HEAD)

    def add(actual):
        actual |= dict.fromkeys(copies, actual[SHARED]) | {unused: np.zeros((32, 3), "f")}

    changed(saved_tied, add)
    assert_same(backbone.load(saved_tied, structs(TIED)), random_leaves(TIED))
    changed(saved_tied, lambda actual: actual.pop(SHARED))
    assert_same(backbone.load(saved_tied, structs(TIED)), random_leaves(TIED))
    changed(saved_tied, lambda actual: actual.update({LM_HEAD: actual[LM_HEAD] + 1}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight must be equal to encoder.embed_to"):
        backbone.load(saved_tied, structs(TIED))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop(LM_HEAD), r"missing: \[lm_head.weight\]$"),
        (lambda x: x.update({"a.weight": x[SHARED]}), r"unexpected: \[a.weight\]$"),
        (
            lambda x: x.update({SHARED: x[SHARED][:200]}),
            r"mis-shaped: \[shared.weight \(200, 16\), wanted \(256, 16\)\]$",
        ),
        (
            lambda x: x.update({LM_HEAD: x[LM_HEAD].astype(np.int8)}),
            "lm_head.weight is stored as I8; give a checkpoint of floating-point",
        ),
    ],
)
def test_leaves_that_do_not_fit(saved, change, message):
    changed(saved, change)
    with pytest.raises(CheckpointError, match=message):
        backbone.load(saved, structs(NANO))


GEMMA_STACK = StackConfig(16, 2, 32, 2, 1, 8, 8.0, window=4)
GEMMA = T5GemmaConfig(64, GEMMA_STACK, GEMMA_STACK)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            NANO,
            {"relative_attention_max_distance": 64},
            "relative_attention_max_distance = 64, where the model has 128; choose the model",
        ),
        # Kernels of the same shapes.
        (
            NANO,
            {"num_heads": NANO.num_heads * 2, "d_kv": NANO.head_dim // 2},
            f"d_kv = {NANO.head_dim // 2}, where the model has {NANO.head_dim}",
        ),
        (NANO, {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05; must be 1e-06"),
        (NANO, {"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        (NANO, {"decoder_start_token_id": 1}, "decoder_start_token_id is 1; must be 0"),
        (NANO, {"num_decoder_layers": 9}, "num_decoder_layers = 9, where"),
        (
            GEMMA,
            {"decoder.sliding_window": 8},
            r"decoder\.sliding_window = 8, where the model has 4",
        ),
        (
            GEMMA,
            {"encoder.query_pre_attn_scalar": 16},
            r"encoder\.query_pre_attn_scalar = 16, where",
        ),
        (GEMMA, {"encoder.layer_types": ["full_attention"] * 2}, r"encoder\.layer_types = \["),
        (NANO, {"dropout_rate": 0.2, "torch_dtype": "float16", "tie_word_embeddings": True}, ""),
        (NANO, {"model_type": "bart"}, ""),
        (GEMMA, {}, ""),
    ],
)
def test_a_config_beside_the_weights_that_is_of_another_model(config, change, message, tmp_path):
    fields = families.of(config).huggingface.config_fields(config, np.dtype("float32"))
    for name, value in change.items():
        stack, _, field = name.rpartition(".")
        (fields[stack] if stack else fields)[field] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    places = (tmp_path, tmp_path / huggingface.SINGLE, str(tmp_path / huggingface.INDEX))
    checks = [functools.partial(backbone.check_config, place, config) for place in places]
    checks.append(
        lambda: initialize(config, Method(), layout=sharding.layout(), checkpoint=tmp_path)
    )
    if config is NANO:
        checks.append(lambda: convert(tmp_path, tmp_path / "out", "safetensors", model="nano"))
    for check in checks if message else checks[:3]:
        if not message:
            check()
            continue
        with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}") as error:
            check()
        assert "\n" not in str(error.value)


def test_other_width_names_both(saved):
    with pytest.raises(CheckpointError, match=r"q.weight \(16, 16\), wanted \(16, 24\)"):
        backbone.load(saved, structs(replace(NANO, d_model=24)))


def test_truncated_anywhere(saved):
    path = saved / huggingface.SINGLE
    content = path.read_bytes()
    for size in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            backbone.load(saved, structs(NANO))


class Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("config_too", [True, False])
def test_pickles_are_refused_and_not_run(saved, tmp_path, config_too):
    (saved / huggingface.SINGLE).unlink()
    if not config_too:
        (saved / families.CONFIG).unlink()
    content = pickle.dumps(Planted(tmp_path / "ran"))
    (saved / "pytorch_model.bin").write_bytes(content)
    for place in (saved, saved / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=r"\.bin files are pickles.*as safetensors"):
            backbone.load(place, structs(NANO))
    (saved / huggingface.SINGLE).write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        backbone.load(saved, structs(NANO))
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists()  # it would have run


def test_config_of_2020(tmp_path):
    """t5-small's fields, without those that came later."""
    (tmp_path / families.CONFIG).write_text(
        '{"model_type": "t5", "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, '
        '"d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, '
        '"layer_norm_epsilon": 1e-06, "n_positions": 512, "num_heads": 8, "num_layers": 6, '
        '"pad_token_id": 0, "relative_attention_num_buckets": 32, "vocab_size": 32128}'
    )
    assert families.read(tmp_path) == preset("t5_1_0_small", dropout_rate=0.1)


def test_output_scaling_tells_tied_from_untied(saved):
    """transformers 5 sets tie_word_embeddings to true whenever it saves."""
    path = saved / families.CONFIG
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    assert not families.read(saved).tied_logits
    path.write_text(json.dumps(fields | {"scale_decoder_outputs": True}))
    assert families.read(saved).tied_logits


@pytest.mark.parametrize("name", ["flan_t5_xxl", "mt5_base", "byt5_small", "t5_1_0_3b"])
def test_leaves_of_a_preset_have_distinct_names(name):
    config = replace(preset(name), num_encoder_layers=3, num_decoder_layers=2)
    shapes = huggingface.shapes_of(config)
    assert len({t5_names.their_name(path) for path in shapes}) == len(shapes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "umt5", "model_type is 'umt5'; must be t5, mt5 or t5gemma"),
        ("feed_forward_proj", "gated-silu", "feed_forward_proj is 'gated-silu'"),
        ("dense_act_fn", "gelu", "dense_act_fn 'gelu'"),
        ("layer_norm_epsilon", 1e-5, "layer_norm_epsilon is 1e-05; must be 1e-06"),
        ("decoder_start_token_id", 2, "decoder_start_token_id is 2; must be 0"),
        ("quantization_config", {}, "quantization_config"),
        ("d_model", "512", "d_model is '512'; must be a number"),
        ("d_kv", None, "d_kv is None"),
        ("num_heads", 0, "num_heads = 0: must be at least 1"),
    ],
)
def test_config_that_we_do_not_model(saved, field, value, message):
    path = saved / families.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=message):
        families.read(saved)


@pytest.mark.parametrize(
    ("config", "leaves", "message"),
    [
        (NANO, random_leaves(TIED), "does not fit the model"),
        (
            replace(NANO, activations=("silu", "linear")),
            random_leaves(NANO),
            "config.json has names only for",
        ),
    ],
)
def test_nothing_is_left_of_a_save_that_failed(tmp_path, config, leaves, message):
    with pytest.raises(CheckpointError, match=message):
        huggingface.save(tmp_path / "hf", leaves, config)
    broken = random_leaves(NANO) | {"encoder/encoder_norm/scale": Unreadable((16,))}
    with pytest.raises(OSError, match="disk"):
        huggingface.save(tmp_path / "hf", broken, NANO)
    assert not list(tmp_path.iterdir())


class Unreadable:
    dtype = np.dtype("float32")

    def __init__(self, shape) -> None:
        self.shape = shape

    def __array__(self, dtype=None, copy=None):
        raise OSError("disk")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_t5x_to_theirs_and_back(dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leaves = random_leaves(NANO, dtype)
    t5x.write_checkpoint("checkpoint_7", leaves, step=7, dtype=jnp.dtype(dtype))
    convert("checkpoint_7", "hf", "huggingface", model="nano")
    convert("hf", "ours.safetensors", "safetensors")
    convert("ours.safetensors", "back/checkpoint_9", "t5x", model="nano")
    for place in ("hf", "ours.safetensors", "back/checkpoint_9"):
        assert_same(backbone.load(place, structs(NANO, dtype)), leaves)
    assert t5x.open_checkpoint("back/checkpoint_9").step == 9
    assert_same(load_file("ours.safetensors"), leaves)


def test_tied_t5x_to_theirs_and_back(saved_tied, tmp_path):
    with pytest.warns(UserWarning, match=r"has no config.json, and that of .* is no preset's"):
        convert(saved_tied, tmp_path / "checkpoint_0", "t5x")
    checkpoint = t5x.open_checkpoint(tmp_path / "checkpoint_0")
    assert_same(t5x.read_leaves(checkpoint, structs(TIED)), random_leaves(TIED))
    # No preset has this shape, so the config is passed explicitly.
    leaves = backbone.open_leaves(tmp_path / "checkpoint_0", huggingface.shapes_of(TIED))
    huggingface.save(tmp_path / "back", leaves, TIED)
    back, there = (load_file(path / huggingface.SINGLE) for path in (tmp_path / "back", saved_tied))
    assert_same(back, there)
    assert LM_HEAD not in back


def test_command(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    flags = ("--from=hf", "--to=b", "--format=huggingface", "--dtype=bfloat16")
    assert run_command("prompt_tuning.convert", *flags) == (0, "wrote b\n", "")
    expected = random_leaves(NANO)
    got = backbone.load(saved.parent / "b", structs(NANO, "bfloat16"))
    assert_same(got, {path: leaf.astype(jnp.bfloat16) for path, leaf in expected.items()})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "new", "form": "t5x"}, "--to=new: T5X reads folders named checkpoint_STEP"),
        ({"target": "new", "form": "safetensors"}, "--to=new: the file name must end in"),
        ({"model": "t5_1_1_smal"}, "--model: no preset named 't5_1_1_smal'"),
        ({"model": "demo"}, "hf/config.json: vocab_size = 256, where the model has 8192; "),
        ({"source": "gone"}, "--from=gone: no config.json beside the weights"),
        ({"source": "gone", "model": "nano"}, "gone: no such file or folder"),
    ],
)
def test_mistakes_write_nothing(saved, changed, message, monkeypatch):
    monkeypatch.chdir(saved.parent)
    given = {"source": "hf", "target": "new", "form": "huggingface"} | changed
    with pytest.raises((UserError, CheckpointError)) as raised:
        convert(**given)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
    assert [path.name for path in saved.parent.iterdir()] == ["hf"]


def test_single_files_and_one_leaf(saved, tmp_path):
    shutil.copy(saved / huggingface.SINGLE, tmp_path / "any.safetensors")
    assert_same(backbone.load(tmp_path / "any.safetensors", structs(NANO)), random_leaves(NANO))
    for path in ("decoder/logits_dense/kernel", "token_embedder/embedding"):
        np.testing.assert_array_equal(backbone.load_leaf(saved, path), random_leaves(NANO)[path])


def test_only_a_copy_of_the_embedding(saved):
    """Of tensors that share memory, safetensors keeps the first by name."""
    changed(saved, lambda x: x.update({"encoder.embed_tokens.weight": x.pop(SHARED)}))
    path = "token_embedder/embedding"
    np.testing.assert_array_equal(backbone.load_leaf(saved, path), random_leaves(NANO)[path])


FULL_DISK = """
import resource, sys
from prompt_tuning import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
targets = ("hf2", "t5x/checkpoint_1", "orbax/checkpoint_1", "b.safetensors")
for form, to in zip(convert.FORMATS, targets, strict=True):
    try:
        convert.convert("hf", to, form)
    except ValueError as error:
        print(form, error)
"""


def test_full_disk_is_one_line(saved):
    """A limit on file size stands in for a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK], cwd=saved.parent, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(FORMATS), done.stderr
    assert all("check access and free disk space" in line for line in lines)
    assert all("large" in line for line in lines), lines
    left = {path for path in saved.parent.rglob("*") if path.is_file()}
    assert left == {saved / families.CONFIG, saved / huggingface.SINGLE}
