"""Summarisation tasks, and ROUGE and BLEU against numbers computed by hand."""

import json
import math

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import summarisation
from prompt_tuning.data.catalogue.generation_metrics import bleu, rouge
from prompt_tuning.data.catalogue.text_task import register
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import Predictions


def test_rouge_by_hand():
    # Unigrams: 3 of 4 said, 3 of 6 expected: F = 2 * 3 / 10. Bigrams ("the cat" and "cat sat"):
    # 2 of 3, 2 of 5: 2 * 2 / 8. The longest common subsequence is "the cat sat": 3 of 4, 3 of 6.
    actual = rouge(["The cat sat on a mat"], ["the cat sat down"])
    assert actual == {"rouge1": 0.6, "rouge2": 0.5, "rougeLsum": 0.6}


def test_rouge_is_a_mean_over_rows():
    actual = rouge(["a b", "c d"], ["a b", "x y"])
    assert actual == {"rouge1": 0.5, "rouge2": 0.5, "rougeLsum": 0.5}


def test_rouge_l_is_of_sentences():
    # Sentences in the other order: as one text the longest common subsequence is 2 of 4 words, and
    # for each expected sentence all of its words are in a sentence that was said.
    apart = rouge(["one two . three four"], ["three four . one two"])
    assert apart["rougeLsum"] == 1
    lines = rouge(["one two\nthree four"], ["three four\none two"])
    assert lines["rougeLsum"] == 1
    together = rouge(["one two three four"], ["three four one two"])
    assert together["rougeLsum"] == 0.5


def test_bleu_by_hand():
    # Precisions of 1- to 4-grams: 5/6, 4/5, 3/4, 2/3; as many words as expected.
    expected = math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4)
    actual = bleu(["the old cat sat down here"], ["the old cat sat down there"])
    assert actual == {"bleu": pytest.approx(expected)}
    # One word of six less costs exp(1 - 6 / 5), all precisions being 1.
    actual = bleu(["the old cat sat down here"], ["the old cat sat down"])
    assert actual == {"bleu": pytest.approx(math.exp(1 - 6 / 5))}


def test_bleu_is_of_the_corpus():
    # 4-grams: 1 of 2; as a mean over rows it would be 0.5 as well, but not with 3-grams 2 of 4,
    # 2-grams 3 of 6 and words 4 of 8 in one geometric mean.
    assert bleu(["a b c d", "e f g h"], ["a b c d", "s t u v"])["bleu"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("task", "example"),
    [
        (summarisation.TASKS[0], {"document": "It rained.\nIt poured.", "summary": "Rain."}),
        (
            summarisation.TASKS[1],
            {"article": "It rained.\nIt poured.", "highlights": "Rain.", "id": "1"},
        ),
    ],
    ids=["xsum", "cnn_dailymail"],
)
def test_text(task, example):
    [actual] = task.format(tf.data.Dataset.from_tensors(example)).as_numpy_iterator()
    assert actual == {"inputs": b"summarize: It rained.\nIt poured.", "targets": b"Rain."}


@pytest.mark.parametrize("task", summarisation.TASKS, ids=lambda task: task.task)
def test_formats_read_what_tensorflow_datasets_has(task):
    name, version = task.tfds_name.split(":")
    assert version == str(tfds.builder_cls(name).VERSION)
    with tfds.testing.mock_data(num_examples=1):
        [actual] = task.format(tfds.load(name, split="validation")).as_numpy_iterator()
    assert actual["inputs"].startswith(b"summarize: ")


@pytest.mark.parametrize("task", summarisation.TASKS, ids=lambda task: task.task)
def test_local_files(tmp_path, vocabulary, task):
    folder = tmp_path / task.local.folder
    folder.mkdir()
    rows = [{"document": "It rained all day.", "summary": "one two three four"}] * 2
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert register(summarisation.TASKS, vocabulary, tmp_path) == (task.task,)
    actual = TaskData(task.task, {"inputs": 32, "targets": 16}, 2).eval_set("validation")
    assert actual.inputs == ["summarize: It rained all day."] * 2
    scores = measure(actual, Predictions(actual.targets))
    assert list(scores) == ["rouge1", "rouge2", "rougeLsum", "bleu"]
    assert list(scores.values()) == pytest.approx([1, 1, 1, 1])
