"""Values that the dtype of a file cannot hold are an error in every writer."""

import warnings

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.checkpoint.formats import huggingface, peft, t5x, t5x_orbax
from prompt_tuning.checkpoint.formats.safetensors_file import in_dtype
from prompt_tuning.errors import CheckpointError
from prompt_tuning.exchange.conversion import FORMATS, convert
from prompt_tuning.testing import tiny_config

CONFIG = tiny_config()
LEAF = "encoder/encoder_norm/scale"


def leaves(value: float, dtype: object = np.float32) -> dict[str, np.ndarray]:
    shapes = huggingface.shapes_of(CONFIG)
    whole = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    whole[LEAF] = np.full_like(whole[LEAF], value, dtype)
    return whole


@pytest.mark.parametrize(
    ("value", "stored", "written", "fits"),
    [
        (65504, "float32", "float16", True),
        (65519, "float32", "float16", True),  # which is rounded to 65504
        (65520, "float32", "float16", False),
        (-1e6, "float32", "float16", False),
        (1e5, "bfloat16", "float16", False),
        (3.4e38, "float32", "bfloat16", False),
        (3.38e38, "float32", "bfloat16", True),
        (1e39, "float64", "float32", False),
        (np.inf, "float32", "float16", True),  # it was infinite before
        (1e30, "float32", "float32", True),
    ],
)
def test_the_largest_values(value, stored, written, fits):
    array = np.asarray([1, value, np.nan], np.dtype(stored))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        if fits:
            expected = np.asarray([1, value, np.nan]).astype(np.dtype(written))
            actual = in_dtype("leaf", array, np.dtype(written))
            np.testing.assert_array_equal(actual.astype(float), expected.astype(float))
        else:
            with pytest.raises(CheckpointError, match=f"^leaf: has the value .*of {written}: it"):
                in_dtype("leaf", array, np.dtype(written))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_convert_names_the_leaf_and_leaves_nothing(form, to, tmp_path):
    source = tmp_path / "source"
    value = {"float16": 7e4, "bfloat16": 3.4e38}[to]
    huggingface.save(source, leaves(value), CONFIG, dtype=np.dtype(np.float32))
    name = {"huggingface": "out", "safetensors": "out.safetensors"}.get(form, "checkpoint_0")
    target = tmp_path / "written" / name
    with pytest.raises(CheckpointError, match=r"(encoder_norm/scale|final_layer_norm.*): has the"):
        convert(source, target, form, dtype=to)
    written = tmp_path / "written"
    assert not (written.exists() and list(written.iterdir()))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: backbone.save(path / "a.safetensors", leaves(7e4), "float16"),
        lambda path: t5x.write_checkpoint(path / "a", leaves(7e4), step=0, dtype="float16"),
        lambda path: t5x_orbax.write_checkpoint(path / "a", leaves(7e4), step=0, dtype="float16"),
        lambda path: prompts.save(path / "a.npy", np.full((2, 4), 1e39)),
        lambda path: prompts.save(path / "a.safetensors", np.full((2, 4), 1e39)),
        lambda path: peft.write(path / "a", {}, {"rows": np.full((2, 4), -1e39)}),
    ],
)
def test_every_writer(write, tmp_path):
    with pytest.raises(CheckpointError, match="it would be infinite"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_the_dtype_of_jax():
    assert np.dtype("bfloat16") == ml_dtypes.bfloat16
