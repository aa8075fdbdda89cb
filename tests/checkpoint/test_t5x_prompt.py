"""The way back: prompts in checkpoints that T5X itself wrote, after two steps of `in_t5x`.

`fixtures/t5x_adapter` is the golden `mini` in both of T5X's layouts, with the prompt and the logits
that T5X computed with it.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.checkpoint.card import path_of
from prompt_tuning.errors import CheckpointError
from prompt_tuning.exchange import inspection
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt_file import with_prompt
from prompt_tuning.t5 import T5, T5Config
from prompt_tuning.testing import rounding
from prompt_tuning.transformer.paths import unflatten

FIXTURES = Path(__file__).parents[1] / "fixtures"
WRITTEN = FIXTURES / "t5x_adapter"
CONFIG = T5Config(96, 24, 4, 8, 40, 3, 2)
ORBAX, NATIVE = WRITTEN / "checkpoint_2", WRITTEN / "native" / "checkpoint_2"
FOLDERS = pytest.mark.parametrize("folder", [ORBAX, NATIVE], ids=["orbax", "native"])


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(WRITTEN / "expected.npz") as file:
        return dict(file)


@FOLDERS
def test_prompt_is_equal(folder, expected):
    np.testing.assert_array_equal(prompts.load(folder), expected["prompt"])
    method = with_prompt(PromptTuning(length=3), str(folder))
    assert method.length == prompts.length(folder) == 10
    assert not path_of(folder).exists()


def test_prompt_of_the_original_code(shared_data):
    """Its prompt files are missing where it saved with Orbax; the checkpoint has the prompt."""
    folder = shared_data / "golden" / "checkpoints"
    with np.load(folder / "mini_prompt_expected.npz") as file:
        gold = file["target/encoder/prompt/prompt/prompt"]
    actual = prompts.load(folder / "mini_prompt_legacy" / "checkpoint_2")
    np.testing.assert_array_equal(actual, gold)


def test_logits(expected):
    """Equal to T5X's at all targets but for rounding; at padding T5X's networks add no zeros."""
    checkpoints = [backbone.open_t5x(folder).target_shapes for folder in (ORBAX, NATIVE)]
    assert checkpoints[0] == checkpoints[1]
    leaves = [
        {name: backbone.load_leaf(folder, name) for name in checkpoints[0]}
        for folder in (ORBAX, NATIVE)
    ]
    jax.tree.map(np.testing.assert_array_equal, *leaves)
    model = T5(CONFIG, PromptTuning(length=10))
    with np.load(FIXTURES / "golden" / "mini" / "inputs.npz") as batch:
        keys = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
        tokens = [batch[key] for key in keys]
    logits = jax.jit(model.apply)({"params": unflatten(leaves[0])}, *tokens)
    bound = rounding.forward(CONFIG, 10 + tokens[0].shape[1], tokens[1].shape[1])
    scale = np.abs(expected["logits"]).max()
    ours, theirs = (array[tokens[2] > 0] for array in (np.asarray(logits), expected["logits"]))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * scale)


@FOLDERS
def test_inspect(folder, expected):
    contents = inspection.contents_of(folder)
    assert contents.step == 2
    np.testing.assert_array_equal(contents.prompt(), expected["prompt"])
    nearest = inspection.nearest_lines(contents.prompt(), str(folder), None, str(folder))
    assert len(nearest) == 1 + 10


@pytest.mark.parametrize(
    ("folder", "shape", "part"),
    [
        (ORBAX, (10, 32), "the prompt is 24 wide, the backbone 32"),
        (NATIVE, (20, 24), "expected 20 vectors, got 10; set PROMPT_LENGTH = 10"),
        (FIXTURES / "t5x_mini_bfloat16" / "checkpoint_0", None, "no encoder/prompt/prompt/prompt"),
        (WRITTEN / "native", None, "no such prompt file; give one of checkpoint_2"),
        (WRITTEN / "absent", None, "no such prompt file; check PROMPT_FILE"),
    ],
    ids=["width", "length", "no prompt", "run", "absent"],
)
def test_refused(folder, shape, part):
    with pytest.raises(CheckpointError, match=part):
        prompts.load(folder, shape)
