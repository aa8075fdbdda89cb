"""What of the adapter needs no T5X: its form of variables, the lengthened tokens, the labels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core
from flax.linen import partitioning

from prompt_tuning.errors import UserError
from prompt_tuning.families import init_shapes
from prompt_tuning.in_t5x.variables import check_whole, in_t5x_form, labels, longer
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.testing import tiny_config
from prompt_tuning.transformer.paths import flatten

METHOD = PromptTuning(length=3)


@pytest.mark.parametrize(
    ("placement", "rows"),
    [
        ("prefix", [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]]),
        ("suffix", [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]),
        ("suffix_before_eos", [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]]),
        (0, [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]]),
        (2, [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]),
    ],
)
def test_longer(placement, rows):
    tokens = jnp.array([[7, 8, 9, 0], [7, 0, 8, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(longer(tokens, 2, placement), rows)


def leaves():
    shapes = nn.unbox(init_shapes(tiny_config(), METHOD))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def test_form_of_our_own_variables():
    """No boxes; each parameter has its axes beside it, as T5X's partitioner asks for."""
    boxed = jax.tree.map(
        lambda leaf: leaf.replace(value=jnp.zeros(leaf.value.shape)),
        init_shapes(tiny_config(), METHOD),
        is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
    )
    prompt = np.arange(3 * 16, dtype=np.float32).reshape(3, 16)
    made = in_t5x_form(core.freeze({"params": boxed}), {PROMPT_PATH: prompt})
    params, axes = flatten(made["params"]), flatten(made["params_axes"])
    assert set(axes) == {f"{path}_axes" for path in params}
    assert axes[f"{PROMPT_PATH}_axes"] == partitioning.AxisMetadata(("prompt", "prompt_embed"))
    assert {path: leaf.shape for path, leaf in params.items()} == {
        path: leaf.shape for path, leaf in ParamSplit.of(tiny_config(), METHOD).shapes.items()
    }
    np.testing.assert_array_equal(params[PROMPT_PATH], prompt)


@pytest.mark.parametrize(
    ("path", "shape", "part"),
    [
        (PROMPT_PATH, (3, 24), r"the initial value is \(3, 24\), the network's parameter \(3, 16"),
        (PROMPT_PATH, (4, 16), r"is \(4, 16\), the network's parameter \(3, 16\)"),
        ("encoder/prompt/other", (3, 16), "encoder/prompt/other: .* the network's parameter None"),
    ],
)
def test_a_value_of_another_shape(path, shape, part):
    with pytest.raises(UserError, match=part):
        in_t5x_form({"params": leaves()}, {path: np.zeros(shape, np.float32)})


@pytest.mark.parametrize("kind", [dict, core.freeze])
def test_labels_leave_the_backbone_alone(kind):
    """As `ParamSplit` says, for both kinds of tree; the optimizer's state is the prompt's alone."""
    params = kind(leaves())
    actual = labels(PROMPT_PATH.__eq__, params)
    assert type(actual) is type(params)
    trained = {path for path, label in flatten(core.unfreeze(actual)).items() if label == "train"}
    assert trained == ParamSplit.of(tiny_config(), METHOD).trained == {PROMPT_PATH}
    transforms = {"train": optax.adamw(0.1), "frozen": optax.set_to_zero()}
    optimizer = optax.multi_transform(transforms, lambda tree: labels(PROMPT_PATH.__eq__, tree))
    state = optimizer.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 3 * 16 + 1
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    moved = {path for path, leaf in flatten(core.unfreeze(updates)).items() if leaf.any()}
    assert moved == {PROMPT_PATH}


@pytest.mark.parametrize(
    ("stored", "part"),
    [
        ("abc", "the checkpoint lacks d; give"),
        ("abcdx", "the checkpoint has, without use in the network, x; give"),
        ("abx", "lacks c, d; it has, without use in the network, x; give"),
        ("", "lacks a, b, c, d; give"),
        ("abcd123456", "network, 1, 2, 3, 4 and 2 more; give"),
    ],
)
def test_check_whole(stored, part):
    check_whole("abcd", "dcba")
    with pytest.raises(UserError, match=part):
        check_whole(stored, "abcd")
