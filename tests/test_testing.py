"""The dummies and checks of `prompt_tuning.testing`."""

import dataclasses

import jax
import numpy as np
import pytest

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.testing import assert_mistake, check_method, run_command, tiny_model
from prompt_tuning.transformer.paths import flatten

PROMPT = PromptTuning(3, initializer=Uniform())


class TrainsNothing(PromptTuning):
    def trains(self, path: str, added: bool) -> bool:
        return False


class NeverActs(PromptTuning):
    def embedded(self, x, segments, positions, stack, tasks=None):
        with_prompt = super().embedded(x, segments, positions, stack, tasks)
        return jax.tree.map(jax.lax.stop_gradient, with_prompt)


def test_prompt_tuning_keeps_the_contract():
    check_method(PROMPT)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (TrainsNothing(3, initializer=Uniform()), "no leaf is trained"),
        (NeverActs(3, initializer=Uniform()), "trained, but has not moved"),
    ],
)
def test_a_broken_method_is_named(method, message):
    with pytest.raises(AssertionError, match=message):
        check_method(method)


def test_a_tiny_model_is_the_same_on_any_layout():
    one = tiny_model(PROMPT)
    eight = tiny_model(PROMPT, layout=sharding.layout(2))
    table = flatten(eight.frozen)["token_embedder/embedding"]
    assert not table.sharding.is_fully_replicated
    for path, leaf in flatten(one.params).items():
        np.testing.assert_array_equal(flatten(eight.params)[path], leaf)


def test_backbone_leaves_do_not_depend_on_the_method():
    plain, prompted = tiny_model(), tiny_model(dataclasses.replace(PROMPT, length=5))
    for path in prompted.split.backbone:
        np.testing.assert_array_equal(flatten(plain.params)[path], flatten(prompted.params)[path])


def test_a_command_gives_its_status_and_output():
    result = run_command("prompt_tuning.convert", "--from=x")
    assert_mistake(result, "--to")
    with pytest.raises(AssertionError):
        assert_mistake(result, "another message")
