"""Label words that a vocabulary cannot tell apart, and the words that a file's values stand for."""

import contextlib
import json
import re
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest

from prompt_tuning import embedded, serving
from prompt_tuning.checkpoint import trained_data
from prompt_tuning.data import label_words, tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import Row, TextFiles, of_folder
from prompt_tuning.data.source import task_data
from prompt_tuning.data.variants import few_shot, sentinel
from prompt_tuning.errors import UserError
from prompt_tuning.testing import tiny_config, tiny_model
from prompt_tuning.transformer.vocabulary import SentencePiece

LENGTHS = {"inputs": 16, "targets": 8}
ALIKE = [
    (["负面", "正面"], "'负面' and '正面' both become"),
    (["{", "}"], "'{' and '}' both become"),
    (["CO2", "CO₂"], r"'CO2' and 'CO\\u2082' both become 'CO2'"),
    (["positive", "negative", "\uff50ositive"], r"'positive' and '\\uff50ositive' both become"),
    (["😀", "😞"], "both become"),
    (["TM", "™"], r"'TM' and '\\u2122' both become 'TM'"),
    (["good day", "good  day"], "both become 'good day'"),
]


def files_of(labels, tmp_path) -> TextFiles:
    lines = [json.dumps({"text": "t", "label": label}) + "\n" for label in labels]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    path = str(tmp_path / "train.jsonl")
    return TextFiles(train=path, validation=path, labels=labels)


def of_files(labels, vocabulary, tmp_path):
    task_data(
        task=None,
        files=files_of(labels, tmp_path),
        vocabulary=vocabulary,
        lengths=LENGTHS,
        batch_size=2,
    )


def of_file_tasks(labels, vocabulary, tmp_path):
    files_of(labels, tmp_path)
    task_data(
        task="mine",
        file_tasks={"mine": lambda: of_folder(".", str(tmp_path), labels=labels)},
        files=TextFiles(),
        vocabulary=vocabulary,
        lengths=LENGTHS,
        batch_size=2,
    )


def of_a_registered_task(labels, vocabulary, _):
    rows = {"train": lambda: [Row("t", label) for label in labels]}
    tasks.register("test_label_words", rows, vocabulary, labels=labels)
    TaskData("test_label_words", LENGTHS, 2)


def of_a_mixture(labels, vocabulary, _):
    of_a_registered_task(("yes", "no"), vocabulary, _)
    tasks.register("test_label_words_2", {"train": list}, vocabulary, labels=labels)
    tasks.add_mixture("test_label_words_mix", {"test_label_words": 1, "test_label_words_2": 1})
    TaskData("test_label_words_mix", LENGTHS, 2)


def of_few_shot_and_a_sentinel(labels, vocabulary, _):
    rows = {"train": lambda: [Row("t", label) for label in labels]}
    tasks.register("test_label_words", rows, vocabulary, labels=labels)
    name = sentinel.register("test_label_words")
    TaskData(few_shot.register(name, few_shot.FewShot(1), LENGTHS, False), LENGTHS, 2)


@pytest.fixture(scope="module")
def model() -> serving.Model:
    tuned = tiny_model(config=tiny_config(vocab_size=8_192))
    vocabulary = SentencePiece(embedded.vocabulary())
    return serving.Model(tuned.model.config, tuned.frozen, vocabulary, tuned.layout)


WAYS_IN = [of_files, of_file_tasks, of_a_registered_task, of_a_mixture, of_few_shot_and_a_sentinel]


@pytest.mark.filterwarnings("ignore:.*does not know")
@pytest.mark.parametrize("way_in", WAYS_IN)
@pytest.mark.parametrize(("labels", "message"), ALIKE)
def test_words_that_the_vocabulary_cannot_tell_apart(way_in, labels, message, vocabulary, tmp_path):
    with pytest.raises(UserError) as caught:
        way_in(labels, vocabulary, tmp_path)
    assert re.search(message, str(caught.value).replace(f"{sentinel.SENTINEL} ", ""))


@pytest.mark.filterwarnings("ignore:.*does not know")
@pytest.mark.parametrize(("labels", "message"), ALIKE)
def test_served_words_that_the_vocabulary_cannot_tell_apart(model, labels, message, tmp_path):
    np.save(tmp_path / "mood.npy", np.zeros((1, model.config.d_model), np.float32))
    (tmp_path / "labels.json").write_text(json.dumps({"mood": labels}))
    with pytest.raises(UserError, match=message):
        model.add_task("mood", None, labels=labels)
    with pytest.raises(UserError, match=message):
        model.add_tasks(tmp_path)
    assert model.tasks == ()


@pytest.mark.parametrize("word", ["", " ", "\u200b"])
def test_words_without_pieces(word, vocabulary):
    with pytest.raises(UserError, match=r"is empty|no pieces"):
        of_a_registered_task(TextFiles(labels=["good", word]).labels, vocabulary, None)


@pytest.mark.parametrize("word", ["a}", "映画", "naïve 😀"])
def test_a_warning_of_unknown_pieces(word, vocabulary, model):
    with pytest.warns(UserWarning, match=f"{word!r} contains pieces .* does not know"):
        of_a_registered_task(["good", word], vocabulary, None)
    with pytest.warns(UserWarning, match=f"task 'x': labels: {word!r} contains pieces"):
        model.add_task("x", None, labels=["good", word], replace=True)
    model.remove_task("x")


STARS = ("1", "2", "3", "4", "5")
VALUES = [
    (("1", "0"), [1, 0, "1", "0", " 1", "1 ", 1.0, "1.0"], list("10101111")),
    (STARS, [1, 2, 3, 4, "4"], list("12344")),
    (("0", "1"), [0, 1, "0"], list("010")),
    (("False", "True"), [True, False, "True", " False"], ["True", "False", "True", "False"]),
    (("true", "false"), [True, False], ["true", "false"]),
    (("1.0", "2.0"), [1, 2.0, "1", "2.00"], ["1.0", "2.0", "1.0", "2.0"]),
    (("-1", "1"), [-1, "1", "-1"], ["-1", "1", "-1"]),
    (("1", "01"), ["1", "01"], ["1", "01"]),
    (("9007199254740993", "5"), [9007199254740993, "5.0"], ["9007199254740993", "5"]),
    (("no", "yes"), [1, "0", " 1", "yes "], ["yes", "no", "yes", "yes"]),
    (("False", "True"), [0, "1"], ["False", "True"]),
    (("cafe\u0301", "bar"), ["caf\u00e9", "bar"], ["cafe\u0301", "bar"]),
]


@pytest.mark.parametrize(("labels", "values", "words"), VALUES)
def test_a_number_that_is_a_word_is_that_word(labels, values, words, tmp_path):
    def read(name: str, text: str) -> list[str]:
        (tmp_path / name).write_text(text)
        files = TextFiles(test=str(tmp_path / name), labels=labels)
        return [row.targets for row in files.rows("test")]

    lines = "".join(json.dumps({"text": "t", "label": value}) + "\n" for value in values)
    assert read("a.jsonl", lines) == words
    written = [(value, word) for value, word in zip(values, words, strict=True)]
    cells = [(value, word) for value, word in written if not isinstance(value, bool)]
    for delimiter, ending in ((",", "csv"), ("\t", "tsv")):
        table = "".join(f"t{delimiter}{value}\n" for value, _ in [*cells, (labels[0], "")])
        assert read(f"a.{ending}", f"text{delimiter}label\n{table}") == [
            *(word for _, word in cells),
            labels[0],
        ]


@pytest.mark.parametrize(
    ("labels", "value", "message"),
    [
        (("1", "0"), 2, r"is 2, not one of CLASS_LABELS \('1', '0'\)$"),
        (STARS, 0, r"is 0, not one of .*'5'\)$"),
        (("0", "1"), True, "is True, not one of"),
        (("False", "True"), "true", r"is 'true', not one of CLASS_LABELS \('False', 'True'\) nor"),
        (("1", "many"), 0, r"is 0, not one of CLASS_LABELS \('1', 'many'\)$"),
        (("1", "01"), 1.0, "is the number 1.0, which several of"),
        (("no", "yes"), 1.0, "is 1.0, not one of"),
        (("9007199254740992", "5"), 9007199254740993, "is 9007199254740993, not one of"),
        (("no", "yes"), "1_0", "is '1_0', not one of"),
        (("no", "yes"), float("nan"), "is nan, not one of"),
        (("true", "false"), 1, r"is 1, not one of CLASS_LABELS \('true', 'false'\); if they"),
        (("True", "False"), "0", r"is '0', not one of CLASS_LABELS \('True', 'False'\); if they"),
    ],
)
def test_a_number_that_is_no_word(labels, value, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "t", "label": value}))
    with pytest.raises(UserError, match=message):
        TextFiles(test=str(tmp_path / "a.jsonl"), labels=labels).rows("test")


RATINGS = ("awful", "bad", "fair", "good", "great")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize(
    ("labels", "values", "lowest"),
    [
        (RATINGS, (1, 2, 3, 4), "1 is 'bad'"),
        (RATINGS, (4, 3), "3 is 'good'"),
        (RATINGS, ("fair", 4), "4 is 'great'"),
        (("no", "yes"), (1, 1), "1 is 'yes'"),
        (("no", "yes"), (" 1",), "1 is 'yes'"),
        (RATINGS, (0, 4), ""),
        (RATINGS, (1, "awful"), ""),
        (RATINGS, ("bad", "good"), ""),
        (STARS, (1, 2), ""),
        (STARS, (2, 3), ""),
        (("\uff11", "\uff10"), (1, 1), ""),
    ],
)
def test_indices_that_may_start_at_1(tmp_path, recwarn, labels, values, lowest, ending):
    rows = [{"text": "t", "label": value} for value in values]
    delimiter = "\t" if ending == "tsv" else ","
    lines = (
        map(json.dumps, rows)
        if ending == "jsonl"
        else (delimiter.join(map(str, row)) for row in [rows[0], *(r.values() for r in rows)])
    )
    (tmp_path / f"train.{ending}").write_text("\n".join(lines))
    of_folder(".", str(tmp_path), labels=labels).rows("train")
    warned = [str(warning.message) for warning in recwarn]
    assert len(warned) == bool(lowest)
    assert all(f"so {lowest}, and no row is {labels[0]!r}, 0; if they" in text for text in warned)


@pytest.mark.parametrize("value", [5, "5", -1, 2.0])
def test_an_index_out_of_range_gets_a_hint(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "t", "label": value}))
    with pytest.raises(UserError, match="index from 0 to 4; if they start at 1 or mean something"):
        TextFiles(test=str(tmp_path / "a.jsonl"), labels=RATINGS).rows("test")


def test_numbers_of_a_class_label_are_indices(tmp_path: Path):
    types = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(STARS))}
    )
    rows = [{"text": "t", "label": label} for label in (0, 3)]
    datasets.Dataset.from_list(rows, features=types).save_to_disk(tmp_path / "named")
    named = TextFiles(test=str(tmp_path / "named"), labels=STARS)
    assert [row.targets for row in named.rows("test")] == ["1", "4"]

    rows = [{"text": "t", "label": label} for label in (1, 4)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "plain")
    plain = TextFiles(test=str(tmp_path / "plain"), labels=STARS)
    assert [row.targets for row in plain.rows("test")] == ["1", "4"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], "1 is of type int; write it as a string"),
        ([True, False], "True is of type bool"),
        (["yes", None], "None is of type NoneType"),
        ("yes", "must be a list of words"),
        ({"yes": 0}, "must be a list of words"),
        (frozenset(["yes", "no"]), "must be a list of words"),
        (["yes", "yes"], "'yes' and 'yes' are the same"),
        (["caf\u00e9", "cafe\u0301"], r"'caf\\xe9' and 'cafe\\u0301' are the same"),
        (["yes", "yes "], "'yes' and 'yes ' are the same"),
    ],
)
def test_lists_that_are_no_list_of_words(labels, message, model):
    with pytest.raises(UserError, match=f"CLASS_LABELS = .*{message}"):
        TextFiles(labels=labels)
    with pytest.raises(UserError, match=f"task 'x': labels = .*{message}"):
        model.add_task("x", None, labels=labels)


def test_arrays_are_lists_of_words(model):
    model.add_task("x", None, labels=np.array(["no", "yes"]))
    assert model.labels("x") == TextFiles(labels=np.array(["no", "yes"])).labels == ("no", "yes")
    model.remove_task("x")


RANKED = ("no", "yes")


@pytest.mark.parametrize(
    ("targets", "labels", "place"),
    [
        (("no", "YES", "NO"), RANKED, "row 2: the target 'YES' is none of"),
        (("No", "Yes"), RANKED, "row 1: the target 'No'"),
        (("yes", "yes", "yes."), RANKED, "row 3: the target 'yes.'"),
        (("1", "0"), RANKED, "row 1: the target '1'"),
        (("yes", "y\u0435s"), RANKED, "row 2: the target 'y\\u0435s'"),
        (("yes", " no"), RANKED, ""),
        (("CO2", "CO\u2082"), ("CO2", "air"), ""),  # which the vocabulary writes alike
        (("anything", "at all"), (), ""),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_targets_of_a_ranked_task_are_its_label_words(split, targets, labels, place, vocabulary):
    rows = {split: lambda: [Row("a text", target) for target in targets]}
    tasks.register("test_ranked", rows, vocabulary, labels=labels)
    data = TaskData("test_ranked", {"inputs": 8, "targets": 8}, 2)
    read = data.train_batches if split == "train" else data.eval_sets
    argument = 0 if split == "train" else split
    if not place:
        assert read(argument)
        return
    with pytest.raises(UserError, match=rf"^test_ranked, {split} split, {re.escape(place)}"):
        read(argument)
    if split != "train":  # to predict on
        assert data.eval_set(split).targets == list(targets)


def test_targets_that_a_postprocessor_equates_with_label_words(vocabulary):
    rows = {"test": lambda: [Row("a text", "YES"), Row("a text", "No")]}
    tasks.register("test_ranked", rows, vocabulary, labels=RANKED)
    task = tasks.seqio.TaskRegistry.get("test_ranked")
    for postprocess, fits in ((lambda text, **_: text.lower(), True), (lambda x, **_: x, False)):
        tasks.add(
            "test_ranked",
            source=task.source,
            preprocessors=task.preprocessors,
            output_features=task.output_features,
            metric_fns=task.metric_fns,
            postprocess_fn=postprocess,
            labels=RANKED,
        )
        data = TaskData("test_ranked", {"inputs": 8, "targets": 8}, 2)
        if fits:
            [eval_set] = data.eval_sets("test")
            assert eval_set.metric_fns[0](["YES", "No"], ["yes", "yes"]) == {"accuracy": 0.5}
        else:
            with pytest.raises(UserError, match="row 1: the target 'YES'"):
                data.eval_sets("test")


@pytest.mark.parametrize("labels", [("a", "a"), (0, 1), "ab", ("a", " a"), ("", "b"), ("a", None)])
def test_label_words_of_a_registered_task(labels, vocabulary):
    with pytest.raises(UserError, match="mine, label words = "):
        tasks.register("mine", {"test": lambda: [Row("t", "a")]}, vocabulary, labels=labels)


@pytest.mark.parametrize(
    ("words", "trained", "told"),
    [
        (("bad", "good"), ("negative", "positive"), "not on 'bad', 'good', which it is asked for"),
        (("no", "yes", "maybe"), ("no", "yes"), "not on 'maybe', which"),
        (("nein", "yes"), ("no", "yes"), "not on 'nein', which"),
        (("Yes", "no"), ("no", "yes"), "not on 'Yes', which"),
        (("yes",), ("no", "yes"), ""),
        (("cafe\u0301", "no"), ("no", "caf\u00e9"), ""),
        (("a", "b"), (), ""),
        ((), ("a", "b"), ""),
    ],
)
def test_a_warning_of_label_words_of_no_training(words, trained, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        trained_data.warn_of_untrained(words, trained, "p.npy")
    assert len(caught) == bool(told) and all(told in str(each.message) for each in caught)


VERSIONS = ("3.1", "3.10", "3.11")


@pytest.mark.parametrize(
    ("value", "words", "expected"),
    [
        (3.10, VERSIONS, None),  # which is "3.1" and "3.10"
        (3.11, VERSIONS, "3.11"),
        ("3.10", VERSIONS, "3.10"),
        ("3.1", VERSIONS, "3.1"),
        (1, ("1", "1.0"), None),
        (1.0, ("01", "1"), None),
        (1, ("yes", "no"), None),
        ("1", ("Yes", "No"), None),
        (0, ("on", "off"), None),
        (1, ("TRUE", "FALSE"), None),
        (1, ("no", "yes"), "yes"),
        (1, ("entailment", "not_entailment"), "not_entailment"),  # as in GLUE
        (1, ("positive", "negative"), "negative"),  # with a warning
        ("yes", ("yes", "no"), "yes"),
    ],
)
def test_numbers_that_no_word_is_certain_for_are_none(value, words, expected):
    assert label_words.word_of(value, words) == expected


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        (VERSIONS, [3.10], "is the number 3.1, which several of CLASS_LABELS .* as a string"),
        (("yes", "no"), [1, 0], "write the words in the file"),
        (("positive", "negative"), [1, 0], "so 0 is 'positive' and 1 'negative'"),
        (("good", "bad"), ["1", "0"], "so 0 is 'good' and 1 'bad'"),
        (("negative", "positive"), [1, 0], ""),
        (("positive", "negative"), ["positive"], ""),
    ],
)
def test_numbers_the_other_way_round_are_told(labels, values, message, tmp_path):
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": "t", "label": value}) + "\n" for value in values)
    )
    files = TextFiles(train=str(tmp_path / "train.jsonl"), labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = (UserError, UserWarning)
        with pytest.raises(expected, match=message) if message else contextlib.nullcontext():
            files.rows("train")
