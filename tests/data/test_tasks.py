"""SeqIO tasks of rows, and the demo tasks."""

import os

import pytest
import sentencepiece
import seqio
import tensorflow as tf

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.data.metrics import accuracy
from prompt_tuning.errors import UserError

ROWS = [Row(f"sentence number {i} of them", "odd" if i % 2 else "even") for i in range(7)]
LENGTHS = {"inputs": 16, "targets": 8}


@pytest.fixture
def name() -> str:
    return "test_tasks_rows"


def texts(task: seqio.Task, **options) -> list[str]:
    dataset = task.get_dataset(LENGTHS, split="train", **options)
    return [example["inputs_pretokenized"].decode() for example in dataset.as_numpy_iterator()]


def test_vocabulary_has_sentinels_behind_the_pieces(vocabulary):
    pieces = sentencepiece.SentencePieceProcessor(model_file=embedded.vocabulary())
    assert vocabulary.encode("a good film") == pieces.encode("a good film")
    last = pieces.vocab_size() + 99
    assert vocabulary.tokenizer.id_to_piece(last) == "▁<extra_id_0>"
    assert vocabulary == tasks.vocabulary(embedded.vocabulary())


def test_vocabulary_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"gone\.model: no such file"):
        tasks.vocabulary(tmp_path / "gone.model")
    with pytest.raises(UserError, match=r"has none of tokenizer\.model, spiece\.model"):
        tasks.vocabulary(tmp_path)
    (tmp_path / "bad.model").write_text("{}")
    with pytest.raises(UserError, match=r"bad\.model: not a SentencePiece model"):
        tasks.vocabulary(tmp_path / "bad.model")


def test_features_end_in_eos(vocabulary):
    features = tasks.features(vocabulary)
    assert set(features) == {"inputs", "targets"}
    assert all(f.add_eos and f.vocabulary is vocabulary for f in features.values())


def test_rows_keep_their_order_and_become_tokens(name, vocabulary):
    task = tasks.register(name, {"train": lambda: ROWS}, vocabulary)
    assert seqio.get_mixture_or_task(name) is task
    assert texts(task, shuffle=False) == [row.inputs for row in ROWS]
    [first, *_] = task.get_dataset(LENGTHS, split="train", shuffle=False).as_numpy_iterator()
    assert first["inputs"].tolist() == [*vocabulary.encode(ROWS[0].inputs), 1]
    assert first["targets"].tolist() == [*vocabulary.encode("even"), 1]


def test_shuffled_epochs_are_whole_and_differ(name, vocabulary):
    task = tasks.register(name, {"train": lambda: ROWS}, vocabulary)
    actual = texts(task, shuffle=True, seed=3, num_epochs=4)
    epochs = [actual[i : i + len(ROWS)] for i in range(0, len(actual), len(ROWS))]
    assert [sorted(epoch) for epoch in epochs] == [sorted(row.inputs for row in ROWS)] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert actual == texts(task, shuffle=True, seed=3, num_epochs=4)
    assert actual != texts(task, shuffle=True, seed=4, num_epochs=4)


def test_registering_again_replaces(name, vocabulary):
    tasks.register(name, {"train": lambda: ROWS}, vocabulary, labels=("odd", "even"))
    task = tasks.register(name, {"train": lambda: ROWS[:2], "test": lambda: ROWS}, vocabulary)
    assert len(texts(task, shuffle=False)) == 2
    assert set(seqio.get_mixture_or_task(name).splits) == {"train", "test"}
    assert tasks.labels_of(name) == ()


def test_rows_are_read_when_used_and_their_errors_come_through(name, vocabulary, tmp_path):
    files = TextFiles(train=str(tmp_path / "gone.jsonl"), labels=("odd", "even"))
    task = tasks.register_files(name, files, vocabulary)
    assert tuple(task.splits) == ("train",)
    assert tasks.labels_of(name) == ("odd", "even")
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        task.get_dataset(LENGTHS, split="train")


def test_metrics_are_seqio_metrics(name, vocabulary):
    task = tasks.register(name, {"train": lambda: ROWS}, vocabulary, metric_fns=[accuracy])
    assert task.predict_metric_fns == [accuracy]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("demo_reviews", "negative positive"),
        ("demo_questions", "abbreviation description entity human location number"),
        ("demo_topics", "business health politics science sport"),
    ],
)
def test_demo_tasks(name, labels):
    task = seqio.get_mixture_or_task(name)
    words = labels.split()
    assert tasks.labels_of(name) == tuple(words)
    for split in ("train", "validation", "test"):
        targets = [row.targets for row in task.source.rows(split)]
        assert len(targets) >= 190
        assert [targets.count(word) for word in words] == [len(targets) // len(words)] * len(words)


def test_demo_tasks_with_another_vocabulary():
    other = tasks.vocabulary(embedded.vocabulary(), extra_ids=0)
    tasks.register_demo_tasks(other)
    task = seqio.get_mixture_or_task("demo_topics")
    assert task.output_features["inputs"].vocabulary is other


def test_tasks_of_plain_seqio_have_no_labels(name, vocabulary):
    splits = {"train": lambda: ROWS}
    seqio.TaskRegistry.add(
        name, tasks.RowSource(splits), output_features=tasks.features(vocabulary)
    )
    assert tasks.labels_of(name) == ()
    assert tasks.hidden_splits(seqio.TaskRegistry.get(name)) == ()


def test_labels_of_a_mixture_are_in_its_own_order(vocabulary):
    for name, labels in {"z": ("yes", "no"), "a": ("no", "maybe")}.items():
        tasks.register(name, {"train": lambda: ROWS}, vocabulary, labels=labels)
    tasks.add_mixture("both", {"z": 1.0, "a": 2.0})
    assert [task.name for task in tasks.parts("both")] == ["z", "a"]
    assert tasks.labels_of("both") == ("yes", "no", "maybe")


def test_tensorflow_is_quiet_and_leaves_the_gpus_alone():
    assert tf.config.get_visible_devices("GPU") == []
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] != "1"
