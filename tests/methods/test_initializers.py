"""Where prompts start: each initialiser against the table rows it must take."""

import numpy as np
import pytest

from prompt_tuning.checkpoint import prompts
from prompt_tuning.errors import CheckpointError
from prompt_tuning.methods import (
    Backbone,
    ClassLabels,
    FromFile,
    PromptTuning,
    SampledVocabulary,
    Text,
    Uniform,
)
from prompt_tuning.methods.prompt import PROMPT_PATH

V, D = 60, 6
EMBEDDING = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
WORDS = {"yes": [10], "entailment": [11, 12, 13], "no": [50], "the": [4], "answer": [5, 6], "": []}


def encode(text: str) -> list[int]:
    return [i for word in text.split() for i in WORDS[word]]


BACKBONE = Backbone(EMBEDDING, encode)


def start(initializer, length, backbone=BACKBONE, seed=0) -> np.ndarray:
    return initializer(length, backbone, np.random.default_rng(seed))


def ids_of(rows: np.ndarray) -> list[int]:
    """The token of each row; fails where a row is not in the table."""
    matches = (rows[:, None] == EMBEDDING[None]).all(-1)
    assert (matches.sum(1) == 1).all()
    return matches.argmax(1).tolist()


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.0, 0.5)])
def test_uniform(low, high):
    prompt = start(Uniform(low, high), 2_000)
    assert prompt.shape == (2_000, D) and prompt.dtype == np.float32
    assert low <= prompt.min() < low + 0.01 and high - 0.01 < prompt.max() <= high
    assert abs(prompt.mean() - (low + high) / 2) < 0.01


def test_uniform_is_the_papers_by_default():
    assert Uniform() == Uniform(-0.5, 0.5)


@pytest.mark.parametrize(("top", "last"), [(20, 3 + 20), (5_000, V)])
def test_sampled_vocabulary(top, last):
    ids = ids_of(start(SampledVocabulary(top), last - 3))
    # As long as the population: each common token exactly once, none of the special ones.
    assert sorted(ids) == list(range(3, last))
    assert ids != sorted(ids)


@pytest.mark.parametrize("bounds", [(0, np.inf), (-np.inf, 0), (np.nan, 1), (1, 1), (2, 1)])
def test_uniform_between_what_is_no_interval(bounds):
    with pytest.raises(ValueError, match=r"^Uniform\.low = .*: must be two numbers, low below"):
        Uniform(*bounds)


def test_sampled_vocabulary_takes_the_most_common_five_thousand():
    embedding = np.arange(9_000, dtype=np.float32)[:, None]
    ids = start(SampledVocabulary(), 5_000, Backbone(embedding))[:, 0]
    assert (ids.min(), ids.max(), len(set(ids))) == (3, 5_002, 5_000)


@pytest.mark.parametrize(("top", "population"), [(20, 20), (5_000, V - 3)])
def test_more_vectors_than_tokens_to_sample_from(top, population):
    with pytest.raises(ValueError, match=f"length {population + 1}: only {population} tokens"):
        start(SampledVocabulary(top), population + 1)


@pytest.mark.parametrize(
    "initializer", [Uniform(), SampledVocabulary(), ClassLabels(("yes",)), Text("the")]
)
def test_the_seed_decides(initializer):
    first = start(initializer, 8, seed=1)
    np.testing.assert_array_equal(first, start(initializer, 8, seed=1))
    assert (first != start(initializer, 8, seed=2)).any()


def test_class_labels_are_means_of_their_sub_tokens():
    prompt = start(ClassLabels(["yes", "entailment", "no"]), 7)
    assert prompt.shape == (7, D) and prompt.dtype == np.float32
    np.testing.assert_array_equal(prompt[0], EMBEDDING[10])
    by_hand = (EMBEDDING[11] + EMBEDDING[12] + EMBEDDING[13]) / 3
    np.testing.assert_allclose(prompt[1], by_hand, rtol=1e-6)
    np.testing.assert_array_equal(prompt[2], EMBEDDING[50])
    rest = ids_of(prompt[3:])
    assert len(set(rest)) == 4 and min(rest) >= 3


def test_class_labels_are_the_tasks_own_by_default():
    about = Backbone(EMBEDDING, encode, labels=("no", "yes"))
    np.testing.assert_array_equal(start(ClassLabels(), 5, about)[:2], EMBEDDING[[50, 10]])
    np.testing.assert_array_equal(start(ClassLabels(["yes"]), 5, about)[0], EMBEDDING[10])


def test_a_task_without_labels_starts_from_the_rest():
    prompt = start(ClassLabels(), 5)
    np.testing.assert_array_equal(prompt, start(SampledVocabulary(), 5))


def test_more_labels_than_vectors():
    prompt = start(ClassLabels(["yes", "no", "entailment"]), 2)
    np.testing.assert_array_equal(prompt, EMBEDDING[[10, 50]])


def test_text():
    prompt = start(Text("the answer yes"), 6)
    assert prompt.shape == (6, D) and prompt.dtype == np.float32
    np.testing.assert_array_equal(prompt[:4], EMBEDDING[[4, 5, 6, 10]])
    assert min(ids_of(prompt[4:])) >= 3


def test_text_longer_than_the_prompt_is_cut():
    np.testing.assert_array_equal(start(Text("the answer yes"), 3), EMBEDDING[[4, 5, 6]])


@pytest.mark.parametrize(
    "initializer", [ClassLabels(["yes"], rest=Uniform(8, 9)), Text("yes", rest=Uniform(8, 9))]
)
def test_rest_fills_the_other_rows(initializer):
    prompt = start(initializer, 5)
    np.testing.assert_array_equal(prompt[0], EMBEDDING[10])
    assert ((prompt[1:] >= 8) & (prompt[1:] <= 9)).all()


NO_VOCABULARY = Backbone(EMBEDDING)


@pytest.mark.parametrize(
    ("initializer", "backbone", "message"),
    [
        (ClassLabels(["yes", ""]), BACKBONE, "class label '' has no tokens"),
        (Text(""), BACKBONE, "prompt text '' has no tokens"),
        (ClassLabels(["yes"]), NO_VOCABULARY, "class label 'yes': a vocabulary is needed"),
        (Text("yes"), NO_VOCABULARY, "prompt text 'yes': a vocabulary is needed"),
        (FromFile(), BACKBONE, "set PROMPT_FILE"),
    ],
)
def test_nothing_to_start_from(initializer, backbone, message):
    with pytest.raises(ValueError, match=message):
        start(initializer, 4, backbone)


@pytest.mark.parametrize("name", ["prompt.npy", "encoder.prompt.prompt.prompt", "p.safetensors"])
def test_file(tmp_path, name):
    prompt = np.random.default_rng(1).normal(size=(4, D)).astype(np.float32)
    prompts.save(tmp_path / name, prompt)
    loaded = start(FromFile(str(tmp_path / name)), 4)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, prompt)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, D + 1), f"{D + 1} wide, the backbone {D}"),
        ((3, D), "expected 4 vectors, got 3; set PROMPT_LENGTH = 3"),
    ],
)
def test_file_of_another_shape(tmp_path, shape, message):
    np.save(tmp_path / "prompt.npy", np.zeros(shape, np.float32))
    with pytest.raises(CheckpointError, match=message):
        start(FromFile(str(tmp_path / "prompt.npy")), 4)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.npy: no such prompt file"):
        start(FromFile(str(tmp_path / "absent.npy")), 4)


def test_prompt_tuning_puts_it_at_the_prompts_path():
    method = PromptTuning(length=4, initializer=Text("the answer yes"))
    values = method.initial_values(BACKBONE, seed=0)
    assert values.keys() == {PROMPT_PATH}
    np.testing.assert_array_equal(values[PROMPT_PATH], EMBEDDING[[4, 5, 6, 10]])
