"""Evaluation in batches of similar length, and scores over several tasks."""

import dataclasses

import jax
import numpy as np
import pytest
from numpy_prompts import EOS, Alone

from prompt_tuning import decoding
from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.decoding.batches import check_finite
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.evaluation import predict
from prompt_tuning.evaluation.scores import majority, mean_score, most_frequent
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.testing import tiny_model
from prompt_tuning.transformer.paths import flatten, unflatten

LIMIT = 64
LENGTHS = [3, 25, 17, 32]
LABEL_TOKENS = np.array([[7, 1, 0], [9, 5, 1], [4, 1, 0]], np.int32)


def accuracy(targets, predictions) -> dict[str, float]:
    return {"accuracy": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


def eval_set(lengths=LENGTHS, limit=LIMIT, **fields) -> EvalSet:
    rng = np.random.default_rng(0)
    tokens = np.zeros((len(lengths), limit), np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = [*rng.integers(2, 64, length - 1), EOS]
    rows = [str(i) for i in range(len(lengths))]
    defaults = {
        "task": "a_task",
        "split": "test",
        "inputs": rows,
        "targets": rows,
        "encoder_input_tokens": tokens,
        "labels": ("a", "b", "c"),
        "label_tokens": LABEL_TOKENS,
        "target_length": 5,
        "metric_fns": (accuracy,),
        "decode": lambda ids: " ".join(map(str, ids)),
    }
    return EvalSet(**defaults | fields)


def model(placement: str | int) -> TunedModel:
    return tiny_model(PromptTuning(3, placement))


def row_by_row(data: EvalSet) -> list[tuple[Alone, list[int]]]:
    """Each row's tokens, and the reference with the prompt of `model("prefix")`."""
    leaves = flatten(model("prefix").params)
    alone = Alone(np.asarray(leaves.pop(PROMPT_PATH)), unflatten(leaves))
    return [(alone, row[row > 1].tolist()) for row in data.encoder_input_tokens]


def test_scores_are_those_of_each_row_alone():
    data = eval_set()
    predictions = predict.rank_labels(model("prefix"), data, 4)
    labels = [[7], [9, 5], [4]]
    expected = np.array([alone.label_scores(ids, labels) for alone, ids in row_by_row(data)])
    # Log p of a target sums up to three logits and as many normalisers, each within 2e-5 of float64
    # (tests/t5/test_numpy_reference.py).
    np.testing.assert_allclose(predictions.scores, expected, rtol=0, atol=2 * 3 * 2e-5)
    assert predictions.texts == [data.labels[i] for i in expected.argmax(axis=1)]


def test_scores_are_those_of_rows_of_the_full_length():
    """A prompt inside of the input stays in its place where a batch is shorter than the task."""
    data, tuned = eval_set(), model(20)
    predictions = predict.rank_labels(tuned, data, 4)
    score = jax.jit(decoding.score, static_argnums=0)
    expected = score(tuned.model, tuned.params, data.encoder_input_tokens, LABEL_TOKENS)
    # As above, with rounding in both programs.
    np.testing.assert_allclose(predictions.scores, expected, rtol=0, atol=2 * 2 * 3 * 2e-5)


def test_generated_texts_are_those_of_each_row_alone():
    data = eval_set()
    predictions = predict.generate(model("prefix"), data, 4)
    expected = [alone.greedy(ids, data.target_length) for alone, ids in row_by_row(data)]
    decoded = [[int(word) for word in text.split()] for text in predictions.texts]
    assert [row[: len(ids)] for row, ids in zip(decoded, expected, strict=True)] == expected
    assert not any(sum(row[len(ids) :]) for row, ids in zip(decoded, expected, strict=True))
    assert len(set(predictions.texts)) > 1


def shapes_of_batches(monkeypatch, data: EvalSet) -> list[tuple[int, ...]]:
    """The shapes of tokens in batches of 4; asserts that results keep the order of the rows."""
    shapes = []

    def sums(model, trained, frozen, tokens, tasks, labels, most_bytes):
        shapes.append(tokens.shape)
        return np.asarray(tokens).sum(axis=1, keepdims=True) + np.zeros((1, 3))

    monkeypatch.setattr(predict, "_rank", sums)
    predictions = predict.rank_labels(model("prefix"), data, 4)
    assert predictions.scores is not None
    np.testing.assert_array_equal(predictions.scores[:, 0], data.encoder_input_tokens.sum(axis=1))
    return shapes


MANY = [3, 80, 31, 1, 40, 32, 33, 70, 64, 65, 2, 17, 5]


def test_a_batch_is_as_long_as_its_rows_need(monkeypatch):
    # By length: 80 70 65 64 | 40 33 32 31 | 17 5 3 2 | 1
    shapes = shapes_of_batches(monkeypatch, eval_set(MANY, 80))
    assert shapes == [(4, 80), (4, 64), (4, 32), (4, 16)]


def test_no_batch_is_longer_than_the_task(monkeypatch):
    data = eval_set(encoder_input_tokens=eval_set().encoder_input_tokens[:, :12])
    assert shapes_of_batches(monkeypatch, data) == [(4, 12)]


def test_auto():
    with_labels, without = eval_set(), eval_set(labels=())
    assert predict.predictors_for(with_labels, ("auto",)) == ["rank"]
    assert predict.predictors_for(without, ("auto",)) == ["generate"]
    assert predict.predictors_for(with_labels, ("generate", "auto")) == ["generate", "rank"]
    assert predict.predictors_for(with_labels, ("auto", "rank")) == ["rank"]


def test_the_most_frequent_target():
    data = eval_set(targets=["x", "z", "z", "a"])
    assert most_frequent(data).texts == ["z"] * 4
    assert majority(data, ("auto", "generate")) == {"rank/accuracy": 0.5, "generate/accuracy": 0.5}


def test_several_tasks_are_compared_by_the_first_metric_of_each():
    scores = [{"rank/f1": 0.5, "rank/accuracy": 0.9}, {"generate/em": 0.1, "generate/f1": 0.7}]
    assert mean_score(scores) == pytest.approx(0.3)


@pytest.mark.parametrize("function", [predict.rank_labels, predict.generate])
@pytest.mark.parametrize(
    ("of_training", "of_data", "advice"),
    [("<extra_id_0>", "", "sentinel_targets=True"), ("", "<extra_id_0>", "sentinel_targets=False")],
)
def test_data_without_the_sentinel_of_the_training_are_refused(
    function, of_training, of_data, advice
):
    tuned = dataclasses.replace(
        model("prefix"), trained_with=TrainedWith(target_prefix=of_training)
    )
    with pytest.raises(UserError, match=f"with the target prefix .* {advice}"):
        function(tuned, eval_set(target_prefix=of_data), 4)


ABC = ("a", "b", "c")


@pytest.mark.parametrize(
    ("trained", "data", "message"),
    [
        ({"labels": ("b", "a", "c")}, {}, "was trained on .*, and the files of 'a_task'"),
        ({"labels": ("c", "a", "b")}, {"labels": ("a", "c")}, "was trained on .*, and the files"),
        ({"labels": ABC}, {"labels": ("c", "b", "a")}, "was trained on .* give labels as numbers"),
        ({"labels": ("b", "a", "c")}, {"labels_by_number": lambda: False}, ""),
        ({"labels": ABC}, {"labels": ("a", "c")}, ""),
        ({"labels": (*ABC, "d")}, {}, ""),
        ({"labels": ()}, {}, ""),
        ({"text_fields": {"a_task": ("x", "y")}}, {"text_fields": ("y", "x")}, "^TEXT_FIELD = "),
        ({"text_fields": {"other": ("x", "y")}}, {"text_fields": ("y", "x")}, "^TEXT_FIELD = "),
        ({"text_fields": {"a_task": ("x", "y")}}, {"text_fields": ("x", "y")}, ""),
        ({"vocabulary": "0f"}, {"vocabulary": "f0"}, "with the vocabulary 0f, but this one is f0"),
        ({"vocabulary": "0f"}, {"vocabulary": "0f"}, ""),
        ({"vocabulary": "0f"}, {"vocabulary": ""}, ""),
    ],
)
def test_a_model_answers_as_it_was_trained(trained, data, message):
    tuned = dataclasses.replace(model("prefix"), trained_with=TrainedWith(**trained))
    data = eval_set(**{"labels_by_number": lambda: True, **data})
    if not message:
        predict.check_as_trained(tuned, data)
        return
    with pytest.raises((UserError, CheckpointError), match=message) as error:
        predict.rank_labels(tuned, data, 4)
    assert "\n" not in str(error.value)


def test_a_warning_of_labels_that_a_model_was_not_trained_on():
    tuned = dataclasses.replace(model("prefix"), trained_with=TrainedWith(labels=("a", "b")))
    with pytest.warns(UserWarning, match="^the model: was trained .*, not on 'c'"):
        predict.check_as_trained(tuned, eval_set())


PIECES = {5: "fine", 6: "bad", 9: "<extra_id_0>"}


@pytest.mark.parametrize(
    ("tokens", "of_data", "told"),
    [
        ({9}, "", "with the target prefix '<extra_id_0>', and these data have ''"),
        ({5, 6}, "<extra_id_0>", "with the target prefix '', and these data have '<extra_id_0>'"),
        ({5, 9}, "<extra_id_0>", "with the target prefix ''"),
        ({9}, "<extra_id_0>", ""),
        ({5, 6}, "", ""),
        ({5}, "", ""),
        ((), "<extra_id_0>", ""),
    ],
)
def test_the_targets_of_a_training_say_whether_it_had_a_sentinel(tokens, of_data, told):
    def decode(ids) -> str:
        return "".join(PIECES[i] for i in ids).removeprefix(of_data or "no")

    tuned = dataclasses.replace(model("prefix"), first_tokens=frozenset(tokens))
    data = eval_set(target_prefix=of_data, decode=decode)
    if not told:
        predict.check_as_trained(tuned, data)
        return
    with pytest.raises(UserError, match=told):
        predict.generate(tuned, data, 4)


def test_a_training_that_diverged_is_named():
    tuned = model("prefix")
    for path, cause in ((PROMPT_PATH, "trained leaf .* lower LEARNING_RATE"), ("x", "checkpoint")):
        with pytest.raises(UserError, match=cause):
            check_finite(
                np.full(1, np.nan), tuned.model, {path: np.full(2, np.nan)}, tuned.split.trained
            )
