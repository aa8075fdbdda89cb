"""Evaluation by batches of similar length, and what stands for several tasks."""

import functools

import jax
import numpy as np
import pytest

from prompt_tuning import decoding, sharding
from prompt_tuning.evaluation import predict
from prompt_tuning.evaluation import scores as the_scores
from prompt_tuning.evaluation.scores import mean_score, most_frequent
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.t5.config import preset

LIMIT = 80
LENGTHS = [3, 80, 31, 1, 40, 32, 33, 70, 64, 65, 2, 17, 5]
LABEL_TOKENS = np.array([[7, 1, 0], [9, 5, 1], [4, 1, 0]], np.int32)


def accuracy(targets, predictions) -> dict[str, float]:
    return {"accuracy": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


def eval_set(**fields) -> EvalSet:
    rng = np.random.default_rng(0)
    tokens = np.zeros((len(LENGTHS), LIMIT), np.int32)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = rng.integers(2, 250, length)
    rows = [str(i) for i in range(len(LENGTHS))]
    given = {
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
    return EvalSet(**given | fields)


@functools.cache
def model(placement: str | int) -> TunedModel:
    method = PromptTuning(3, placement, Uniform(-2.0, 2.0))
    one = sharding.layout(devices=jax.devices()[:1])
    return initialize(preset("nano"), method, layout=one)


def row_by_row(tuned: TunedModel, tokens: np.ndarray, function) -> np.ndarray:
    """`function` of each row at the full length."""
    return np.concatenate(
        [np.asarray(function(tuned.model, tuned.params, tokens[[i]])) for i in range(len(tokens))]
    )


@pytest.mark.parametrize("placement", ["prefix", 40])
def test_scores_are_those_of_rows_of_the_full_length(placement):
    data, tuned = eval_set(), model(placement)
    found = predict.rank_labels(tuned, data, 4)
    score = jax.jit(functools.partial(decoding.score, targets=LABEL_TOKENS), static_argnums=0)
    expected = row_by_row(tuned, data.encoder_input_tokens, score)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-4)
    assert found.texts == [data.labels[i] for i in expected.argmax(axis=1)]


def test_generated_texts_are_those_of_rows_of_the_full_length():
    data, tuned = eval_set(), model("prefix")
    found = predict.generate(tuned, data, 4)
    greedy = jax.jit(functools.partial(decoding.greedy, length=5), static_argnums=0)
    expected = row_by_row(tuned, data.encoder_input_tokens, greedy)
    assert found.texts == [data.decode(row.tolist()) for row in expected]
    assert len(set(found.texts)) > 1


def test_a_batch_is_as_long_as_its_rows_need(monkeypatch):
    shapes = []

    def sums(model, trained, frozen, tokens, tasks, labels):
        shapes.append(tokens.shape)
        return np.asarray(tokens).sum(axis=1, keepdims=True) + np.zeros((1, 3))

    monkeypatch.setattr(predict, "_rank", sums)
    data = eval_set()
    found = predict.rank_labels(model("prefix"), data, 4)
    assert found.scores is not None
    np.testing.assert_array_equal(found.scores[:, 0], data.encoder_input_tokens.sum(axis=1))
    # By length: 80 70 65 64 | 40 33 32 31 | 17 5 3 2 | 1
    assert shapes == [(4, 80), (4, 64), (4, 32), (4, 16)]


def test_no_batch_is_longer_than_the_task():
    tokens = eval_set().encoder_input_tokens[:, :12]
    data = eval_set(encoder_input_tokens=tokens)
    assert len(predict.rank_labels(model("prefix"), data, 4).texts) == len(LENGTHS)


def test_auto():
    with_labels, without = eval_set(), eval_set(labels=())
    assert predict.predictors_for(with_labels, ("auto",)) == ["rank"]
    assert predict.predictors_for(without, ("auto",)) == ["generate"]
    assert predict.predictors_for(with_labels, ("generate", "auto")) == ["generate", "rank"]
    assert predict.predictors_for(with_labels, ("auto", "rank")) == ["rank"]


def test_the_most_frequent_target():
    data = eval_set(targets=["x", "y", "y", *"zzz", *"abcdefg"])
    assert most_frequent(data).texts == ["z"] * 13
    found = the_scores.majority(data, ("auto", "generate"))
    assert found == {"rank/accuracy": 3 / 13, "generate/accuracy": 3 / 13}


def test_several_tasks_are_compared_by_the_first_metric_of_each():
    scores = [{"rank/f1": 0.5, "rank/accuracy": 0.9}, {"generate/em": 0.1, "generate/f1": 0.7}]
    assert mean_score(scores) == pytest.approx(0.3)
