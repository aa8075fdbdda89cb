"""Data sets that Hugging Face's library has saved, read without it."""

import json
import sys
import unicodedata
import warnings
from pathlib import Path

import datasets
import pytest

from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import all_tasks
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.data.readers import saved_datasets
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.tasks import hidden_splits
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import Predictions

datasets.disable_progress_bars()

ENTAILMENT = datasets.ClassLabel(names=["entailment", "not_entailment"])
TRUTH = datasets.ClassLabel(names=["False", "True"])
STRING, INT = datasets.Value("string"), datasets.Value("int32")
# Data set: features, and a row, as the benchmarks of Hugging Face's hub have them.
SAVED = {
    "super_glue/rte": (
        {"premise": STRING, "hypothesis": STRING, "idx": INT, "label": ENTAILMENT},
        {"premise": "It pours.", "hypothesis": "It rains.", "idx": 0, "label": 0},
    ),
    "glue/rte": (
        {"sentence1": STRING, "sentence2": STRING, "label": ENTAILMENT, "idx": INT},
        {"sentence1": "It pours.", "sentence2": "It snows.", "label": 1, "idx": 0},
    ),
    "super_glue/boolq": (
        {"question": STRING, "passage": STRING, "idx": INT, "label": TRUTH},
        {"question": "is it wet", "passage": "Rain -- Rain is wet.", "idx": 0, "label": 1},
    ),
    "super_glue/multirc": (
        {
            "paragraph": STRING,
            "question": STRING,
            "answer": STRING,
            "idx": {"paragraph": INT, "question": INT, "answer": INT},
            "label": TRUTH,
        },
        {
            "paragraph": "<b>Sent 1: </b>It rains.<br>",
            "question": "What falls?",
            "answer": "Rain",
            "idx": {"paragraph": 0, "question": 0, "answer": 0},
            "label": 1,
        },
    ),
    "super_glue/record": (
        {
            "passage": STRING,
            "query": STRING,
            "entities": datasets.List(STRING),
            "entity_spans": datasets.List({"text": STRING, "start": INT, "end": INT}),
            "answers": datasets.List(STRING),
            "idx": {"passage": INT, "query": INT},
        },
        {
            "passage": "It rained in Ulm",
            "query": "@placeholder is a town.",
            "entities": ["Ulm"],
            "entity_spans": [{"text": "Ulm", "start": 13, "end": 16}],
            "answers": ["Ulm"],
            "idx": {"passage": 0, "query": 0},
        },
    ),
    "glue/stsb": (
        {
            "sentence1": STRING,
            "sentence2": STRING,
            "label": datasets.Value("float32"),
            "idx": INT,
        },
        {"sentence1": "A man sings.", "sentence2": "A man hums.", "label": 3.75, "idx": 0},
    ),
}
EXPECTED = {
    "super_glue_rte_v102": ("hypothesis: It rains. premise: It pours.", "entailment"),
    "glue_rte_v200": ("sentence1: It pours. sentence2: It snows.", "not_entailment"),
    "super_glue_boolq_v102": ("passage: Rain -- Rain is wet. question: is it wet", "True"),
    "super_glue_multirc_v102": (
        "question: What falls? answer: Rain paragraph: Sent 1: It rains. ",
        "True",
    ),
    "super_glue_record_v102": (
        "query: @placeholder is a town. entities: Ulm passage: It rained in Ulm",
        "Ulm",
    ),
    "glue_stsb_v200": ("sentence1: A man sings. sentence2: A man hums.", "3.8"),
}


def save(folder: Path, rows: list[dict], **features: object) -> str:
    types = datasets.Features(features) if features else None
    datasets.Dataset.from_list(rows, features=types).save_to_disk(folder)
    return str(folder)


def save_benchmark(folder: Path, name: str, *changes: dict) -> None:
    features, row = SAVED[name]
    train = datasets.Dataset.from_list(
        [row | change for change in (changes or ({},))], features=datasets.Features(features)
    )
    unlabelled = {"label": -1} if isinstance(features.get("label"), datasets.ClassLabel) else {}
    test = datasets.Dataset.from_list([row | unlabelled], features=datasets.Features(features))
    splits = datasets.DatasetDict(train=train, validation=train, test=test)
    splits.save_to_disk(folder / name)


@pytest.mark.parametrize("shards", [1, 3])
def test_rows_of_the_users_own(tmp_path, shards):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(7)]
    types = datasets.Features({"text": STRING, "label": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_list(rows, features=types)
    dataset.save_to_disk(tmp_path / "own", num_shards=shards)
    expected = [Row(f"text {i}", ("no", "yes")[i % 2]) for i in range(7)]
    files = TextFiles(train=str(tmp_path / "own"), labels=("no", "yes"))
    assert files.rows("train") == expected
    chosen = dataset.select([5, 1])
    chosen.save_to_disk(tmp_path / "chosen")
    files = TextFiles(train=str(tmp_path / "chosen"), labels=("no", "yes"))
    assert files.rows("train") == [expected[5], expected[1]]


def test_a_row_is_named_or_skipped(tmp_path):
    folder = save(tmp_path / "own", [{"text": text, "label": "yes"} for text in ("a", None, " ")])
    files = TextFiles(train=folder, labels=("no", "yes"))
    with pytest.raises(UserError, match=rf"^{folder}, row 2: 'text' is null, not a string$"):
        files.rows("train")
    bad_rows = BadRows(2)
    files = TextFiles(train=folder, labels=("no", "yes"), bad_rows=bad_rows)
    assert files.rows("train") == [Row("a", "yes")]
    assert bad_rows.summary() == f"bad rows skipped: 2 ({folder} 2)"


def test_the_order_of_labels_is_the_data_sets(tmp_path):
    label = datasets.ClassLabel(names=["no", "yes"])
    folder = save(tmp_path / "own", [{"text": "a", "label": 0}], text=STRING, label=label)
    with pytest.raises(UserError, match="'label' numbers no, yes from 0, not yes, no"):
        TextFiles(train=folder, labels=("yes", "no")).rows("train")
    # Other words are verbalizers.
    with pytest.warns(UserWarning, match="'no' is 'bad', 'yes' is 'good'"):
        assert TextFiles(train=folder, labels=("bad", "good")).rows("train") == [Row("a", "bad")]


def test_folders_that_are_none(tmp_path):
    splits = datasets.DatasetDict(dev=datasets.Dataset.from_list([{"text": "a"}]))
    splits.save_to_disk(tmp_path / "splits")
    (tmp_path / "empty").mkdir()
    damaged = Path(save(tmp_path / "damaged", [{"text": "a", "label": "b"}]))
    [arrow] = damaged.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    broken = Path(save(tmp_path / "broken", [{"text": "a", "label": "b"}]))
    (broken / "state.json").write_text("{")
    gone = Path(save(tmp_path / "gone", [{"text": "a", "label": "b"}]))
    next(gone.glob("*.arrow")).unlink()
    for name, message in {
        "splits": "has the splits dev; give one of these folders",
        "empty": "folder contains no saved data set",
        "damaged": "cannot be read",
        "broken": "state.json: not JSON",
        "gone": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            TextFiles(train=str(tmp_path / name)).rows("train")
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    folder = save(tmp_path / "own", [{"text": "a", "label": "b"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'prompt-tuning\[datasets\]'"):
        TextFiles(train=folder).rows("train")


def test_benchmarks(tmp_path, vocabulary):
    for name in SAVED:
        save_benchmark(tmp_path, name)
    names = all_tasks.register(vocabulary, tmp_path)
    for short, (inputs, target) in EXPECTED.items():
        task = f"taskless_{short}_examples"
        assert task in names
        data = TaskData(task, {"inputs": 64, "targets": 16}, 1)
        assert hidden_splits(data.tasks_with("test")[0]) == ("test",)
        assert set(data.splits) == {"train", "validation"}
        actual = data.eval_set("validation")
        assert (actual.inputs, actual.targets) == ([inputs], [target])
        if short != "glue_stsb_v200":  # one example has no correlation
            scores = measure(actual, Predictions([target]))
            assert all(value == pytest.approx(1) for value in scores.values())
    assert len(data.eval_set("test").inputs) == 1


def test_benchmarks_without_the_suites_folder(tmp_path, vocabulary):
    save_benchmark(tmp_path, "super_glue/rte")
    (tmp_path / "super_glue" / "rte").rename(tmp_path / "rte")
    all_tasks.register(vocabulary, tmp_path)
    data = TaskData("taskless_super_glue_rte_v102_examples", {"inputs": 64, "targets": 16}, 1)
    [task] = data.tasks_with("validation")
    assert task.source.folder == tmp_path / "rte"
    assert len(data.eval_set("validation").inputs) == 1


def test_a_bad_row_of_a_benchmark(tmp_path, vocabulary):
    save_benchmark(tmp_path, "super_glue/rte", {"label": 1}, {"label": -1}, {"premise": None})
    all_tasks.register(vocabulary, tmp_path)
    settings = ("taskless_super_glue_rte_v102_examples", {"inputs": 64, "targets": 16}, 1)
    folder = tmp_path / "super_glue" / "rte" / "train"
    with pytest.raises(UserError, match=rf"{folder}, row 2: 'label' is -1, not a number from 0"):
        TaskData(*settings).train_batches(0)
    bad_rows = BadRows(4)
    all_tasks.register(vocabulary, tmp_path, bad_rows)
    assert len(TaskData(*settings).eval_set("train").inputs) == 1
    assert bad_rows.summary() == f"bad rows skipped: 2 ({folder} 2)"


def test_a_field_that_is_missing(tmp_path, vocabulary):
    save_benchmark(tmp_path, "glue/rte")
    (tmp_path / "glue" / "rte").rename(tmp_path / "rte")
    all_tasks.register(vocabulary, tmp_path)
    data = TaskData("taskless_super_glue_rte_v102_examples", {"inputs": 64, "targets": 16}, 1)
    with pytest.raises(UserError, match=rf"^{tmp_path / 'rte'}: no field 'hypothesis'; available"):
        data.eval_set("validation")


def test_old_indices_are_not_ignored(tmp_path):
    folder = Path(save(tmp_path / "own", [{"text": "a", "label": "b"}]))
    index = json.loads((folder / "state.json").read_text())
    index["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="saved by an old version"):
        list(saved_datasets.rows(folder))


@pytest.mark.parametrize(
    ("names", "labels", "is_error"),
    [
        (["no", "yes"], ("Yes", "No"), True),
        (["a", "A"], ("A", "a"), True),
        (["a", "b", "c"], ("a", "c"), True),
        (["a", "b"], ("x", "a", "b"), True),
        (["no", "yes"], ("No", "Yes"), False),
        (["neg", "pos"], ("negative", "positive"), False),
        (["a", "A"], ("a", "A"), False),
        (["a", "b", "c"], ("a", "b"), False),
    ],
)
def test_a_word_that_the_data_set_numbers_otherwise(names, labels, is_error, tmp_path):
    label = datasets.ClassLabel(names=names)
    folder = save(tmp_path / "own", [{"text": "a", "label": 1}], text=STRING, label=label)
    files = TextFiles(train=folder, labels=labels)
    if is_error:
        with pytest.raises(UserError, match=r"'label' numbers .* from 0, not "):
            files.rows("train")
        return
    with warnings.catch_warnings(record=True):
        assert files.rows("train") == [Row("a", labels[1])]


@pytest.mark.parametrize(
    ("names", "labels", "taken"),
    [
        (["neg", "pos"], ("negative", "positive"), "'neg' is 'negative', 'pos' is 'positive'"),
        (["pos", "neg"], ("negative", "positive"), "'pos' is 'negative', 'neg' is 'positive'"),
        (["negative", "pos"], ("negative", "positive"), "so 'pos' is 'positive'"),
        (["0", "1", "2"], ("no", "yes"), "'0' is 'no', '1' is 'yes'"),
        (["1 star", "2 stars"], ("1", "2", "3"), "'1 star' is '1', '2 stars' is '2'"),
        (["No", "YES"], ("no", "yes"), ""),
        (["no", "yes", "maybe"], ("no", "yes"), ""),
        ([unicodedata.normalize("NFD", "caf\u00e9"), "no"], ("caf\u00e9", "no"), ""),
    ],
)
def test_classes_that_are_no_label_words_are_a_warning(names, labels, taken, tmp_path):
    label = datasets.ClassLabel(names=names)
    folder = save(tmp_path / "own", [{"text": "a", "label": 1}], text=STRING, label=label)
    files = TextFiles(train=folder, test=folder, labels=labels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert [files.rows(split)[0].targets for split in ("train", "test")] == [labels[1]] * 2
    told = [str(each.message) for each in caught]
    assert len(told) == bool(taken) and all(taken in message for message in told)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_the_order_of_classes_is_checked_in_any_unicode_form(forms, tmp_path):
    saved, given = (unicodedata.normalize(form, "cat\u00e9gorie") for form in forms)
    label = datasets.ClassLabel(names=["yes", "no"])
    folder = save(tmp_path / "own", [{"text": "a", saved: 1}], **{"text": STRING, saved: label})
    files = TextFiles(train=folder, label_field=given, labels=("no", "yes"))
    with pytest.raises(UserError, match="numbers yes, no from 0, not no, yes"):
        files.rows("train")
