"""A small model on real examples of every local task: text, answers, metrics."""

import dataclasses

import numpy as np
import pytest
import seqio
import sklearn.metrics

from prompt_tuning import sharding
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue.glue import BENCHMARKS, register_benchmarks
from prompt_tuning.evaluation.predict import PREDICTORS, predictors_for
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.t5.config import preset

LOCAL = [b for b in BENCHMARKS if b.local and "validation" in b.splits]
# The range of what is measured: correlations go below 0.
METRICS = {
    "boolq": {"accuracy": 0},
    "cb": {"mean_3class_f1": 0, "accuracy": 0},
    "copa": {"accuracy": 0},
    "multirc": {"f1": 0, "exact_match": 0},
    "record": {"em": 0, "f1": 0},
    "rte": {"accuracy": 0},
    "wic": {"accuracy": 0},
    "wsc": {"accuracy": 0},
    "cola": {"matthews_corrcoef": -1},
    "sst2": {"accuracy": 0},
    "mrpc": {"f1": 0, "accuracy": 0},
    "stsb": {"pearson_corrcoef": -1, "spearman_corrcoef": -1},
    "qnli": {"accuracy": 0},
    "wnli": {"accuracy": 0},
}
# Metrics of words, computed from words.
BY_SKLEARN = {
    "accuracy": lambda targets, words, _: sklearn.metrics.accuracy_score(targets, words),
    "f1": lambda targets, words, labels: sklearn.metrics.f1_score(
        targets, words, pos_label=labels[1], zero_division=0
    ),
    "mean_3class_f1": lambda targets, words, labels: sklearn.metrics.f1_score(
        targets, words, labels=list(labels), average="macro", zero_division=0
    ),
    "matthews_corrcoef": lambda targets, words, _: sklearn.metrics.matthews_corrcoef(
        targets, words
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _local_tasks(first_rows, vocabulary):
    register_benchmarks(vocabulary, first_rows)


@pytest.fixture(scope="module")
def model():
    """Nano-size at random, with the embedded vocabulary."""
    config = dataclasses.replace(preset("nano"), vocab_size=preset("demo").vocab_size)
    return initialize(config, PromptTuning(4, initializer=Uniform()), layout=sharding.layout())


def examples_of(task: str) -> EvalSet:
    return TaskData(task, {"inputs": 32, "targets": 16}, 8).eval_set("validation")


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda benchmark: benchmark.task)
def test_a_model_is_measured(model: TunedModel, benchmark):
    data = examples_of(benchmark.task)
    assert len(data.targets) >= 8
    [method] = predictors_for(data, ("auto",))
    assert method == ("rank" if benchmark.labels else "generate")
    actual = PREDICTORS[method](model, data, 8)
    assert len(actual.texts) == len(data.targets)
    scores = measure(data, actual)
    lowest = METRICS[benchmark.name]
    assert scores.keys() == lowest.keys()
    for metric, value in scores.items():
        assert lowest[metric] <= value <= 1
        if benchmark.labels and metric in BY_SKLEARN:
            expected = BY_SKLEARN[metric](data.targets, actual.texts, benchmark.labels)
            assert value == pytest.approx(expected)


def test_right_answers_of_wsc_score_one():
    """Where the example's noun is not what the pronoun refers to, any other noun is right."""
    [benchmark] = [benchmark for benchmark in LOCAL if benchmark.name == "wsc"]
    data = examples_of(benchmark.task)
    rows = seqio.TaskRegistry.get(benchmark.task).source.columns("validation")
    answers = [
        target if label else "nobody"
        for target, label in zip(data.targets, rows["label"].numpy(), strict=True)
    ]
    assert len(set(np.array(answers) == np.array(data.targets))) == 2
    assert measure(data, Predictions(answers)) == {"accuracy": 1.0}
