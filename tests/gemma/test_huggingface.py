"""T5Gemma's folders of transformers, read and written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prompt_tuning import families
from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.formats import huggingface
from prompt_tuning.errors import CheckpointError
from prompt_tuning.exchange.conversion import convert
from prompt_tuning.gemma import PRESETS
from prompt_tuning.testing import random_leaves

FOLDER = Path(__file__).parents[1] / "fixtures" / "gemma"
MODELS = ("grouped", "unequal", "uncapped")


def assert_same(actual: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert actual.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(actual[name], array)
        assert actual[name].dtype == array.dtype


@pytest.mark.parametrize("model", MODELS)
def test_folder_to_ours_to_folder(model, tmp_path):
    convert(FOLDER / model, tmp_path / "ours.safetensors", "safetensors")
    shutil.copy(FOLDER / model / families.CONFIG, tmp_path)
    convert(tmp_path / "ours.safetensors", tmp_path / "back", "huggingface")
    theirs = load_file(FOLDER / model / huggingface.SINGLE)
    assert_same(load_file(tmp_path / "back" / huggingface.SINGLE), theirs)
    assert families.read(tmp_path / "back") == families.read(FOLDER / model)


@pytest.mark.parametrize("form", ["t5x", "orbax"])
def test_t5x_layouts(form, tmp_path):
    shapes = huggingface.shapes_of(families.read(FOLDER / "unequal"))
    convert(FOLDER / "unequal", tmp_path / "checkpoint_0", form)
    wanted = backbone.open_leaves(FOLDER / "unequal", shapes)
    actual = backbone.open_leaves(tmp_path / "checkpoint_0", shapes)
    for path in shapes:
        np.testing.assert_array_equal(np.asarray(actual[path]), np.asarray(wanted[path]))


def test_shards(tmp_path):
    config = PRESETS["t5gemma_nano"]
    leaves = random_leaves({p: np.zeros(s) for p, s in huggingface.shapes_of(config).items()})
    huggingface.save(tmp_path / "hf", leaves, config, shard_bytes=10_000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    shapes = huggingface.shapes_of(families.read(tmp_path / "hf"))
    opened = backbone.open_leaves(tmp_path / "hf", shapes)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(np.asarray(opened[path]), leaf)


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER / "unequal", tmp_path / "hf"))


def test_the_output_layer_may_be_the_only_copy_of_the_decoders_table(copied):
    tensors = load_file(copied / huggingface.SINGLE)
    tensors["lm_head.out_proj.weight"] = tensors.pop("model.decoder.embed_tokens.weight")
    save_file(tensors, copied / huggingface.SINGLE)
    shapes = huggingface.shapes_of(families.read(copied))
    opened = backbone.open_leaves(copied, shapes)
    np.testing.assert_array_equal(
        np.asarray(opened["decoder_token_embedder/embedding"]), tensors["lm_head.out_proj.weight"]
    )


def test_an_output_layer_that_is_not_tied_is_refused(copied):
    tensors = load_file(copied / huggingface.SINGLE)
    tensors["lm_head.out_proj.weight"] = 1 + tensors["model.decoder.embed_tokens.weight"]
    save_file(tensors, copied / huggingface.SINGLE)
    with pytest.raises(
        CheckpointError, match=r"lm_head\.out_proj\.weight must be equal to model\."
    ):
        backbone.open_leaves(copied, huggingface.shapes_of(families.read(copied)))


@pytest.mark.parametrize(
    ("checkpoint", "model", "message"),
    [
        ("peft_example/backbone.safetensors", "t5gemma_nano", "holds a t5, which the model is not"),
        ("gemma/unequal", "nano", "holds a t5gemma, which the model is not"),
    ],
)
def test_the_other_family_is_refused(checkpoint, model, message):
    path = FOLDER.parent / checkpoint
    with pytest.raises(CheckpointError, match=message) as raised:
        backbone.open_leaves(path, huggingface.shapes_of(families.preset(model)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("place", "field", "value", "message"),
    [
        ("", "encoder", None, "encoder is None; must be an object"),
        ("", "tie_word_embeddings", False, "tie_word_embeddings is False; must be True"),
        ("", "quantization_config", {}, "quantization_config"),
        ("encoder", "hidden_size", None, "encoder.hidden_size is None; must be a whole number"),
        ("encoder", "hidden_activation", "silu", "hidden_activation is 'silu'; must be 'gelu_"),
        ("decoder", "attention_bias", True, "decoder.attention_bias is True; must be False"),
        ("decoder", "pad_token_id", 3, "decoder.pad_token_id is 3; must be 0"),
        ("decoder", "eos_token_id", [7], "decoder.eos_token_id is .7.; must be 1"),
        ("encoder", "rope_scaling", {"factor": 2}, "scaled rotary positions"),
        ("encoder", "layer_types", ["chunked"], "layer_types has 'chunked'; must be of sliding"),
        ("encoder", "layer_types", [["a"]], r"layer_types has \['a'\]; must be of sliding"),
        ("encoder", "layer_types", 3, "layer_types is 3; must be a list"),
        ("encoder", "rope_parameters", "x", "rope_parameters is 'x'; must be of all layers"),
        ("encoder", "rope_parameters", {"full_attention": {}}, "must be of all layers"),
        ("encoder", "rope_parameters", {"rope_theta": -1}, "rope_base = -1: must be above 0"),
        ("encoder", "attn_logit_softcapping", -5.0, "attention_cap = -5.0: must be above 0"),
        ("decoder", "final_logit_softcapping", 0, "logit_cap = 0: must be above 0"),
        ("encoder", "query_pre_attn_scalar", float("inf"), "scalar is inf; must be a number"),
        ("", "dropout_rate", "a", ": dropout_rate is 'a'; must be a number"),
        ("", "model_type", ["t5gemma"], "model_type is .'t5gemma'.; must be t5, mt5 or t5gemma"),
        ("encoder", "layer_types", ["full_attention"], "has 1 values for 2 layers"),
        ("encoder", "sliding_window", None, "sliding_window is None"),
        ("encoder", "rope_theta", "1", "rope_theta is '1'; must be a number"),
        ("encoder", "num_key_value_heads", 3, "key_heads = 3: must divide"),
    ],
)
def test_config_that_we_do_not_model(copied, place, field, value, message):
    path = copied / families.CONFIG
    content = json.loads(path.read_text())
    (content[place] if place else content)[field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        families.read(copied)


def test_older_names_of_fields(copied):
    """Of transformers 4, which writes `rope_theta` and no `layer_types`."""
    path = copied / families.CONFIG
    content = json.loads(path.read_text())
    for stack in (content["encoder"], content["decoder"]):
        del stack["rope_parameters"], stack["layer_types"]
        stack["rope_theta"] = 500.0
    path.write_text(json.dumps(content))
    config = families.read(copied)
    assert config.encoder.rope_base == config.decoder.rope_base == 500.0
    assert config.encoder.windowed == (True, False)


@pytest.mark.parametrize("place", ["", "decoder"])
def test_further_end_tokens_are_told(copied, place):
    path = copied / families.CONFIG
    content = json.loads(path.read_text())
    (content[place] if place else content)["eos_token_id"] = [1, 45]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"eos_token_id is \[1, 45\]; texts end at 1 alone"):
        families.read(copied)
