"""Prompt recycling: maps worked out by hand, the same model in another basis, the command."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.checkpoint.formats import t5x
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.exchange import recycling
from prompt_tuning.methods import Backbone, FromFile, PromptTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5 import T5, preset
from prompt_tuning.testing import CommandResult, run_command
from prompt_tuning.transformer.paths import EMBEDDING, unflatten

LINEAR = pytest.mark.parametrize(
    "method", [recycling.linear_least_squares, recycling.linear_combination]
)
RNG = np.random.default_rng(0)
N, D, WIDER = 60, 6, 9
SOURCE, PROMPT = RNG.normal(size=(N, D)), RNG.normal(size=(4, D))


@LINEAR
def test_by_hand(method):
    # Each axis occurs twice, the first one with targets 1 and 3, so its best slope is 2.
    source = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    target = np.array([[1.0], [3], [5], [5]])
    np.testing.assert_allclose(method(np.array([[1.0, 1], [2, 0]]), source, target), [[7], [4]])


@LINEAR
def test_linear_image_of_the_vocabulary(method):
    image = RNG.normal(size=(D, WIDER))
    np.testing.assert_allclose(method(PROMPT, SOURCE, SOURCE @ image), PROMPT @ image, atol=1e-9)


@LINEAR
def test_the_same_backbone(method):
    np.testing.assert_allclose(method(PROMPT, SOURCE, SOURCE), PROMPT, atol=1e-9)


def test_least_squares_are_the_least():
    target = RNG.normal(size=(N, WIDER))
    actual = recycling.linear_least_squares(np.eye(D), SOURCE, target)
    error = np.linalg.norm(SOURCE @ actual - target)
    for _ in range(20):
        other = actual + 1e-3 * RNG.normal(size=actual.shape)
        assert error < np.linalg.norm(SOURCE @ other - target)


def test_a_combination_of_two_tokens_keeps_its_weights():
    # As many tokens as dimensions: one combination only.
    source, target = RNG.normal(size=(D, D)), RNG.normal(size=(D, WIDER))
    prompt = 0.5 * source[:1] - 2 * source[4:5]
    actual = recycling.linear_combination(prompt, source, target)
    np.testing.assert_allclose(actual, 0.5 * target[:1] - 2 * target[4:5], atol=1e-9)


@pytest.mark.parametrize("tokens", [3, D, N])
def test_the_linear_methods_agree(tokens):
    """Also if no map is exact, and with fewer tokens than dimensions."""
    source, target = SOURCE[:tokens], RNG.normal(size=(tokens, WIDER))
    np.testing.assert_allclose(
        recycling.linear_least_squares(PROMPT, source, target),
        recycling.linear_combination(PROMPT, source, target),
        atol=1e-9,
    )


def test_mlp_learns_what_is_not_linear():
    rng = np.random.default_rng(3)
    source, unseen = (rng.normal(size=(n, 3)).astype(np.float32) for n in (1_000, 200))
    arguments = unseen, source, abs(source)
    actual = recycling.mlp(*arguments, epochs=30, learning_rate=0.01)
    assert actual.shape == unseen.shape
    assert np.mean((actual - abs(unseen)) ** 2) < 0.02
    # No linear map follows a function that is even.
    assert np.mean((recycling.linear_least_squares(*arguments) - abs(unseen)) ** 2) > 0.5


def test_mlp_depends_on_its_seed_alone():
    target = RNG.normal(size=(N, WIDER))
    first, again, other = (
        recycling.mlp(PROMPT, SOURCE, target, epochs=2, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, WIDER) and (first != other).all()


def test_fitting_rows():
    source, target = np.arange(20).reshape(10, 2), np.arange(24).reshape(8, 3)
    a, b = recycling.fitting_rows(source, target, 2, 6)
    np.testing.assert_array_equal(a, source[2:8])
    np.testing.assert_array_equal(b, target[2:])
    with pytest.raises(UserError, match="--skip=3 --tokens=6: the backbones have 8 rows"):
        recycling.fitting_rows(source, target, 3, 6)


CONFIG = dataclasses.replace(preset("nano"), d_model=24)  # a size that no other axis has
METHOD = PromptTuning(length=3)
SPLIT = ParamSplit.of(CONFIG, METHOD)
SHAPES = {path: SPLIT.shapes[path].shape for path in SPLIT.backbone}
ORDER = np.random.default_rng(1).permutation(24)


def reordered(leaf: np.ndarray) -> np.ndarray:
    """A leaf of the same model with the dimensions of its residual stream in another order."""
    for axis in [axis for axis, size in enumerate(leaf.shape) if size == 24]:
        leaf = leaf.take(ORDER, axis)
    return leaf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A backbone, the same one in another basis, a prompt, and backbones that do not fit."""
    folder = tmp_path_factory.mktemp("recycle")
    rng = np.random.default_rng(2)
    leaves = {path: rng.normal(0, 0.3, shape) for path, shape in SHAPES.items()}
    moved = {path: reordered(leaf) for path, leaf in leaves.items()}
    backbone.save(folder / "source.safetensors", leaves, "float32")
    backbone.save(folder / "target.safetensors", moved, "float32")
    t5x.write_checkpoint(folder / "checkpoint_1", moved, step=1)
    short = {EMBEDDING: leaves[EMBEDDING][:200, :20]}
    backbone.save(folder / "short.safetensors", short, "float32")
    backbone.save(folder / "other.safetensors", {"lm_head.weight": np.zeros((256, 24))}, "float32")
    prompts.save(folder / "prompt.npy", rng.normal(size=(3, 24)))
    return folder


def command(*arguments: str, tokens: int = 100) -> CommandResult:
    flags = ["--prompt=prompt.npy", "--source=source.safetensors", "--skip=3", f"--tokens={tokens}"]
    flags += ["--target=target.safetensors", "--output=recycled.npy", *arguments]
    return run_command("prompt_tuning.recycle", *flags)


@jax.jit
def forward(params: dict) -> jax.Array:
    inputs = jnp.arange(3, 15).reshape(2, 6)
    return T5(CONFIG, METHOD).apply({"params": params}, inputs, inputs, inputs)


def logits(folder, checkpoint: str, prompt: str) -> np.ndarray:
    wanted = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in SHAPES.items()}
    leaves = backbone.load(folder / checkpoint, wanted)
    method = dataclasses.replace(METHOD, initializer=FromFile(str(folder / prompt)))
    leaves |= method.initial_values(Backbone(leaves[EMBEDDING]), seed=0)
    return np.asarray(forward(unflatten(leaves)))


def test_the_same_model_in_another_basis(folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = command("--target=checkpoint_1")
    assert done.status == 0, done.err
    by = "linear_least_squares over tokens 3 to 102"
    assert done.out == f"recycled.npy: 3 vectors, 24 wide, by {by}\n"
    before = logits(folder, "source.safetensors", "prompt.npy")
    after = logits(folder, "checkpoint_1", "recycled.npy")
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    # The prompt matters to this model: without the map, its logits differ.
    unmapped = logits(folder, "checkpoint_1", "prompt.npy")
    assert abs(unmapped - before).max() > 100 * abs(after - before).max()


def test_a_target_of_another_width_and_vocabulary(folder, monkeypatch):
    monkeypatch.chdir(folder)
    flags = "--target=short.safetensors", "--output=short/new.safetensors", "--method=mlp"
    done = command(*flags, "--epochs=1", tokens=197)
    assert done.status == 0, done.err
    assert done.out.startswith(
        "256 and 200 rows of embeddings: the first ones are taken as common\n"
    )
    assert prompts.load(folder / "short" / "new.safetensors").shape == (3, 20)


@pytest.mark.parametrize("name", ["source.safetensors", "checkpoint_1"])
def test_one_leaf_in_its_own_shape(folder, name):
    leaf = backbone.load_leaf(folder / name, EMBEDDING)
    assert leaf.shape == (256, 24) and leaf.dtype == np.float32
    wanted = backbone.load_leaf(folder / "source.safetensors", EMBEDDING)
    np.testing.assert_array_equal(leaf, reordered(wanted) if name == "checkpoint_1" else wanted)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.safetensors", "contains no token_embedder/embedding"),
        ("checkpoint_2", "no such file or folder"),
        ("http://a/b", "must be a local path, gs:// or s3://"),
    ],
)
def test_no_leaf_to_read(folder, name, message):
    with pytest.raises(CheckpointError, match=message):
        backbone.load_leaf(name if "//" in name else folder / name, EMBEDDING)
