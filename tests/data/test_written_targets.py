"""Targets as the vocabulary writes them, for metrics and for lengths."""

import json

import numpy as np
import pytest
import seqio

from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import all_tasks, question_answering
from prompt_tuning.data.catalogue.generation_metrics import rouge
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.data.metrics import accuracy
from prompt_tuning.data.source import task_data
from prompt_tuning.data.variants import few_shot, sentinel
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.scores import majority, measure
from prompt_tuning.evaluation.sets import EvalSet, Predictions

LENGTHS = {"inputs": 16, "targets": 24}
NAME = "test_written_targets"
TARGETS = [
    "two\nlines",
    "two  spaces",
    "a tm\u2122",
    "\ufb01ne",
    "cafe\u0301 au lait",
    "a { brace",
    "\u6620\u753b",
    "tab\there",
    "non\u00a0breaking",
]


def perfect(data: EvalSet, vocabulary) -> Predictions:
    """The outputs of a model that generates the tokens of each target."""
    return Predictions([vocabulary.decode(vocabulary.encode(text)) for text in data.targets])


def lowered(text, **_):
    return [text.lower()]


def equal(targets, predictions):
    return {"equal": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


def registered(texts, vocabulary, *, labels=(), metrics=(accuracy,), postprocess=None) -> str:
    rows = {split: lambda: [Row("t", text) for text in texts] for split in ("train", "test")}
    tasks.add(
        NAME,
        source=tasks.RowSource(rows),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features=tasks.features(vocabulary),
        metric_fns=metrics,
        postprocess_fn=postprocess,
        labels=labels,
    )
    return NAME


@pytest.mark.filterwarnings("ignore:.*does not know")
@pytest.mark.parametrize("text", TARGETS)
def test_an_output_of_the_targets_tokens_is_right_by_every_metric(text, vocabulary):
    texts, other = [text, f"{text} again"], Predictions(["no"] * 2)
    metrics = [accuracy, rouge, equal]
    plain = TaskData(registered(texts, vocabulary, metrics=metrics), LENGTHS, 2).eval_set("test")
    scores = measure(plain, perfect(plain, vocabulary))
    assert scores["accuracy"] == scores["equal"] == 1
    assert set(measure(plain, other).values()) == {0}
    assert majority(plain, ["generate"])["generate/accuracy"] == 0.5

    processed = registered(texts, vocabulary, metrics=[equal], postprocess=lowered)
    sentinels = few_shot.register(
        sentinel.register(processed), few_shot.FewShot(1), LENGTHS, use_cached=False
    )
    for name in (processed, sentinels):
        data = TaskData(name, LENGTHS, 2).eval_set("test")
        assert measure(data, perfect(data, vocabulary)) == {"equal": 1}
        assert measure(data, other) == {"equal": 0}

    words = TaskData(registered(texts, vocabulary, labels=texts), LENGTHS, 2).eval_set("test")
    assert measure(words, perfect(words, vocabulary)) == {"accuracy": 1}
    assert measure(words, Predictions(texts)) == {"accuracy": 1}
    assert measure(words, Predictions(texts[::-1])) == {"accuracy": 0}


@pytest.mark.filterwarnings("ignore:.*does not know")
def test_files_say_once_how_many_targets_change(tmp_path, vocabulary):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "t", "label": text}) for text in [*TARGETS, "plain", " plain "]]
    path.write_text("\n".join(lines))
    files = TextFiles(test=str(path))
    options = {"vocabulary": vocabulary, "lengths": LENGTHS, "batch_size": 2}
    data = task_data(task=None, files=files, **options).eval_set("test")
    assert measure(data, perfect(data, vocabulary)) == {"accuracy": 1}
    [note] = [note for note in data.notes if "vocabulary writes" in note]
    assert note == (
        f"files, test split: {len(TARGETS)} of {len(TARGETS) + 2} targets are compared as the "
        r"vocabulary writes them, such as 'two\nlines' as 'two lines'"
    )
    data = task_data(task="demo_reviews", files=TextFiles(), **options).eval_set("test")
    assert not any("vocabulary writes" in note for note in data.notes)


def test_each_answer_of_a_question_is_as_the_vocabulary_writes_it(tmp_path, vocabulary):
    folder = tmp_path / question_answering.SQUAD.local.folder
    folder.mkdir()
    question = {
        "qid": "q",
        "question": "What?",
        "answers": ["CO\u2082", "m\u00b2"],
    }
    context = {"context": "CO\u2082 per m\u00b2", "qas": [question]}
    (folder / "validation.jsonl").write_text(
        json.dumps({"header": {"dataset": "x", "split": "dev"}}) + "\n" + json.dumps(context)
    )
    all_tasks.register(vocabulary, tmp_path)
    data = TaskData(question_answering.SQUAD.task, LENGTHS, 2).eval_set("validation")
    for answer in ("CO2", "m2"):
        assert measure(data, Predictions([answer])) == {"em": 1, "f1": 1}


@pytest.mark.parametrize("text", ["fine day", "a", "\u2122 day", "two  spaces"])
def test_a_sentinel_counts_in_the_length_of_a_target(text, vocabulary):
    most = len(vocabulary.encode(text)) + 1

    def data(name: str, length: int) -> TaskData:
        return TaskData(name, {"inputs": 8, "targets": length}, 1)

    plain = registered([text], vocabulary)
    with_sentinel = sentinel.register(plain)
    few = few_shot.register(with_sentinel, few_shot.FewShot(1), LENGTHS, use_cached=False)
    next(data(plain, most).train_batches(0))
    for name in (with_sentinel, few):
        with pytest.raises(UserError, match=f"{most + 1} tokens with its end token, more than"):
            data(name, most).train_batches(0)
        with pytest.raises(UserError, match=f"{most + 1} tokens with its end token, more than"):
            data(name, most).eval_set("test")
        batch = next(data(name, most + 1).train_batches(0))
        ids = batch["decoder_target_tokens"][0].tolist()
        assert ids == [vocabulary.vocab_size - 1, *vocabulary.encode(text), vocabulary.eos_id]
        data(name, most + 1).eval_set("test")
    labelled = sentinel.register(registered([text], vocabulary, labels=[text]))
    with pytest.raises(UserError, match=f"{most + 1} tokens with its end token"):
        data(labelled, most).eval_set("test")
    data(labelled, most + 1).eval_set("test")


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        (["\u4e2d\u6587", "\u65e5\u672c", "plain"], 1),
        (["a  b", "a b", "a\nb"], 2),
        (["\ufb01ne", "fine"], 1),
        (["two  spaces", "two  spaces", "fine"], 0),
    ],
)
def test_targets_that_the_vocabulary_cannot_tell_apart(vocabulary, texts, count):
    data = TaskData(registered(texts, vocabulary), LENGTHS, 2).eval_set("test")
    warned = [note for note in data.notes if note.startswith("warning") and "cannot tell" in note]
    assert [f"cannot tell {count} targets" in note for note in warned] == [True] * bool(count)
