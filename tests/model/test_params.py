"""The split of leaves into trained and frozen, and the parameter counts of the published sizes."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning.families import init_shapes
from prompt_tuning.methods import ModelTuning, PromptTuning
from prompt_tuning.methods.base import Method
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.t5 import preset
from prompt_tuning.training.optim import only_trained
from prompt_tuning.transformer.paths import flatten, unflatten

NANO = preset("nano")
SPLIT = ParamSplit.of(NANO, PromptTuning(length=7))
SCALE = "encoder/encoder_norm/scale"


@dataclasses.dataclass(frozen=True)
class PromptAndNorms(PromptTuning):
    def trains(self, path: str, added: bool) -> bool:
        return added or path.endswith("norm/scale")


@pytest.fixture
def leaves() -> dict[str, np.ndarray]:
    """A distinct array for every path, in shapes of the model."""
    sizes = [math.prod(leaf.shape) for leaf in SPLIT.shapes.values()]
    starts = np.cumsum([0, *sizes])
    return {
        path: np.arange(start, start + size, dtype=np.float32).reshape(leaf.shape)
        for (path, leaf), start, size in zip(SPLIT.shapes.items(), starts, sizes, strict=False)
    }


def assert_same(tree, leaves):
    flat = flatten(tree)
    assert flat.keys() == leaves.keys()
    assert all(flat[path] is leaf for path, leaf in leaves.items())


@pytest.mark.parametrize("method", [PromptTuning(7), PromptAndNorms(7)], ids=["prompt", "norms"])
def test_merge_undoes_split(leaves, method):
    split = ParamSplit.of(NANO, method)
    trained, frozen = split.split(unflatten(leaves))
    assert_same(split.merge(trained, frozen), leaves)


def test_split_takes_the_prompt_alone(leaves):
    trained, frozen = SPLIT.split(unflatten(leaves))
    assert_same(trained, {PROMPT_PATH: leaves[PROMPT_PATH]})
    del leaves[PROMPT_PATH]
    assert_same(frozen, leaves)


def test_which_paths():
    norms = {path for path in SPLIT.shapes if path.endswith("norm/scale")}
    backbone = set(SPLIT.shapes) - {PROMPT_PATH}
    assert len(norms) == 2 * 2 + 3 * 2 + 2  # encoder layers, decoder layers, final
    assert (SPLIT.added, SPLIT.trained) == ({PROMPT_PATH}, {PROMPT_PATH})
    assert (SPLIT.frozen, SPLIT.backbone) == (backbone, backbone)
    split = ParamSplit.of(NANO, PromptAndNorms(7))
    assert (split.added, split.trained) == ({PROMPT_PATH}, {PROMPT_PATH} | norms)
    assert (split.frozen, split.backbone) == (backbone - norms, backbone)
    split = ParamSplit.of(NANO, ModelTuning())
    assert (split.added, split.trained, split.frozen) == (set(), backbone, set())


def test_a_method_that_trains_nothing_leaves_the_backbone_alone():
    split = ParamSplit.of(NANO, Method())
    assert (split.added, split.trained, split.frozen) == (set(), set(), split.backbone)


def test_overlap_is_refused(leaves):
    trained, _ = SPLIT.split(unflatten(leaves))
    with pytest.raises(ValueError, match=f"both.*{PROMPT_PATH}"):
        SPLIT.merge(trained, unflatten(leaves))


def without(leaves, path):
    return unflatten({name: leaf for name, leaf in leaves.items() if name != path})


@pytest.mark.parametrize("path", [SCALE, PROMPT_PATH])
def test_gaps_are_refused(leaves, path):
    with pytest.raises(ValueError, match=f"missing.*{path}"):
        SPLIT.split(without(leaves, path))
    with pytest.raises(ValueError, match=f"missing.*{path}"):
        SPLIT.merge(without(leaves, path), {})


def test_unknown_leaves_are_refused(leaves):
    leaves["encoder/adapter/kernel"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"does not have.*encoder/adapter/kernel"):
        SPLIT.split(unflatten(leaves))
    with pytest.raises(ValueError, match=r"does not have.*encoder/adapter/kernel"):
        SPLIT.merge(unflatten(leaves), {})


def test_labels_of_full_and_pruned_trees(leaves):
    expected = dict.fromkeys(leaves, "frozen") | {PROMPT_PATH: "train"}
    trained, frozen = SPLIT.split(unflatten(leaves))
    assert flatten(SPLIT.labels(unflatten(leaves))) == expected
    assert flatten(SPLIT.labels(trained)) == {PROMPT_PATH: "train"}
    assert flatten(SPLIT.labels(frozen)) == dict.fromkeys(flatten(frozen), "frozen")


def test_only_trained_leaves_are_updated_in_a_full_tree(leaves):
    params = unflatten(leaves)
    optimizer = only_trained(optax.sgd(0.5), SPLIT)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for path, update in flatten(updates).items():
        expected = -0.5 if path == PROMPT_PATH else 0.0
        np.testing.assert_array_equal(update, np.full_like(leaves[path], expected), err_msg=path)


# The paper's sizes: parameters, and those of a prompt of 100.
SIZES = {
    "small": (76_961_152, 51_200),
    "base": (247_577_856, 76_800),
    "large": (783_150_080, 102_400),
    "xl": (2_849_757_184, 204_800),
    "xxl": (11_135_332_352, 409_600),
}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    backbone, prompt = SIZES[size]
    shapes = flatten(nn.unbox(init_shapes(preset(f"t5_1_1_{size}"), PromptTuning(length=100))))
    assert shapes[PROMPT_PATH].shape == (100, prompt // 100)
    assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == backbone + prompt


def test_counts_of_a_split():
    backbone, prompt = SIZES["small"]
    split = ParamSplit.of(preset("t5_1_1_small"), PromptTuning(length=100))
    assert split.count(split.backbone) == split.count(split.frozen) == backbone
    assert split.count(split.trained) == prompt
    assert split.count(frozenset()) == 0
