"""Reading comprehension: text, answers, metric, and MRQA's files."""

import json

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.data import tasks as tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import all_tasks, question_answering
from prompt_tuning.data.catalogue.text_task import register
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import Predictions

LINES = [
    {"header": {"dataset": "BioASQ", "split": "dev"}},
    {
        "context": " Mr. Low's dog (a poodle) sleeps. ",
        "qas": [
            {"qid": "q1", "question": "Who sleeps?", "answers": ["Mr. Low's dog", "the  dog"]},
            {"qid": "q2", "question": " What is it? ", "answers": ["a poodle"]},
        ],
    },
    {"context": "It rained.", "qas": [{"qid": "q3", "question": "Rain", "answers": ["rained"]}]},
]
BIO_ASQ = question_answering.MRQA["bio_asq"]


def write(folder, lines, name="validation.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def formatted(task, example):
    [actual] = task.format(tf.data.Dataset.from_tensors(example)).as_numpy_iterator()
    return actual


# `question: ... context: ...`, a space on each side of a punctuation mark, runs of spaces as one.
SPACED = 'question: Who won , Ann or Bo ? context: Ann ( 1 . 8 m ) won \u2014 " easily " . '


def test_text_of_squad():
    example = {
        "id": "x",
        "title": "t",
        "question": "Who won, Ann or Bo?",
        "context": 'Ann (1.8 m)\nwon  \u2014 "easily".',
        "answers": {"text": ["Ann", "Ann (1.8 m)"], "answer_start": [0, 0]},
    }
    actual = formatted(question_answering.SQUAD, example)
    assert actual["inputs"].decode() == SPACED
    assert actual["targets"] == b"Ann"
    assert actual["answers"].tolist() == [b"Ann", b"Ann ( 1 . 8 m ) "]


def test_text_of_mrqa():
    example = {
        "qid": "x",
        "subset": "DROP",
        "question": "Who won, Ann or Bo?",
        "context": 'Ann (1.8 m)\nwon  \u2014 "easily".',
        "answers": ["Ann's team", "Ann"],
    }
    actual = formatted(question_answering.MRQA["drop"], example)
    assert actual["inputs"].decode() == SPACED
    assert actual["targets"] == b"Ann ' s team"
    assert actual["answers"].tolist() == [b"Ann ' s team", b"Ann"]


def test_names_are_those_of_the_original_code(vocabulary):
    names = set(all_tasks.register(vocabulary))
    tasks = {"bio_asq", "drop", "duo_rc", "race", "relation_extraction", "textbook_qa"}
    assert {f"mrqa_{task}_v100_examples" for task in tasks} <= names
    assert {f"squad_to_{task}_examples" for task in (*tasks, "mrqa")} <= names
    assert "squad_v010_allanswers_examples" in names
    drop = seqio.TaskRegistry.get("mrqa_drop_v100_examples")
    assert tuple(drop.splits) == ("validation",)
    # TensorFlow Datasets calls the only split of these sets "test".
    assert drop.source.tfds_dataset.get_split_params("validation")[0] == "mrqa/drop:1.0.0"
    mixture = seqio.MixtureRegistry.get("squad_to_drop_examples")
    assert [t.name for t in mixture.tasks if "train" in t.splits] == [
        "squad_v010_allanswers_examples"
    ]


@pytest.mark.parametrize("task", question_answering.TASKS, ids=lambda task: task.task)
def test_formats_read_what_tensorflow_datasets_has(task):
    name, version = task.tfds_name.split(":")
    suite = name.split("/")[0]
    assert version == str(tfds.builder_cls(suite).VERSION)
    with tfds.testing.mock_data(num_examples=3):
        rows = tfds.load(name, split="validation" if suite == "squad" else "test")
        rows = rows.filter(lambda row: tf.size(_answers(row)) > 0)
        actual = list(task.format(rows).as_numpy_iterator())
    assert actual
    assert all(example["inputs"].startswith(b"question: ") for example in actual)


def _answers(example):
    answers = example["answers"]
    return answers["text"] if isinstance(answers, dict) else answers


def test_files_of_mrqa(tmp_path, vocabulary):
    write(tmp_path / "bio_asq", LINES)
    write(tmp_path / "squad", LINES, "train.jsonl")
    assert register(question_answering.TASKS, vocabulary, tmp_path) == (
        "squad_v010_allanswers_examples",
        "mrqa_bio_asq_v100_examples",
    )
    actual = TaskData(BIO_ASQ.task, {"inputs": 64, "targets": 16}, 2).eval_set("validation")
    assert actual.inputs == [
        "question: Who sleeps ? context: Mr . Low ' s dog ( a poodle ) sleeps . ",
        "question: What is it ? context: Mr . Low ' s dog ( a poodle ) sleeps . ",
        "question: Rain context: It rained . ",
    ]
    assert actual.targets == ["Mr . Low ' s dog", "a poodle", "rained"]
    # Row 1: equal to the second answer but for article and capital. Row 2: of the 3 words said and
    # the 1 of the answer (the article aside) 1 is common: precision 1/3, recall 1. Row 3: wrong.
    said = Predictions(["Dog.", "one brown poodle", "sun"])
    assert measure(actual, said) == {"em": pytest.approx(1 / 3), "f1": pytest.approx((1 + 0.5) / 3)}
    assert measure(actual, Predictions(actual.targets)) == {"em": 1, "f1": 1}
    task = seqio.TaskRegistry.get("squad_v010_allanswers_examples")
    assert tuple(task.splits) == ("train",)
    assert tasks.labels_of(task.name) == ()
    assert len(list(task.get_dataset(split="train", shuffle=False))) == 3


def changed(**fields):
    question = LINES[2]["qas"][0] | fields
    return LINES[2] | {"qas": [question]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"qas": []}, "no field 'context'; available: qas"),
        ({"context": 3, "qas": []}, "'context' is 3, not a text"),
        ({"context": "c", "qas": ["q"]}, r"'qas' is \['q'\], not a list of objects"),
        (changed(answers=[]), r"'answers' is \[\], not a list of texts"),
        (changed(answers="rained"), "'answers' is 'rained', not a list of texts"),
        (changed(question=None), "'question' is None, not a text"),
    ],
)
def test_lines_that_are_not_as_they_must_be(tmp_path, vocabulary, line, message):
    write(tmp_path / "bio_asq", [*LINES, line])
    register([BIO_ASQ], vocabulary, tmp_path)
    source = seqio.TaskRegistry.get(BIO_ASQ.task).source
    with pytest.raises(UserError, match=rf"validation\.jsonl, line 4: {message}"):
        source.get_dataset("validation")


def test_files_without_questions(tmp_path, vocabulary):
    write(tmp_path / "bio_asq", LINES[:1])
    register([BIO_ASQ], vocabulary, tmp_path)
    source = seqio.TaskRegistry.get(BIO_ASQ.task).source
    with pytest.raises(UserError, match=r"validation\.jsonl: contains no questions"):
        source.get_dataset("validation")
