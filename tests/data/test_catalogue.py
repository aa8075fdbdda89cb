"""All tasks together: mixtures and their rates, transfer between paraphrase tasks, sentinels."""

import collections
import json
import re
import socket

import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data import show_tasks, tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import all_tasks, glue, mixtures, paraphrase
from prompt_tuning.data.files import Row
from prompt_tuning.data.variants import sentinel
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import Predictions

RTE, CB = "taskless_super_glue_rte_v102_examples", "taskless_super_glue_cb_v102_examples"
MRPC_FROM_QQP = "taskless_glue_mrpc_from_qqp_v200_examples"
# Training examples, as in the rates of T5's code.
SIZES = {
    "boolq": 9_427,
    "cb": 250,
    "copa": 400,
    "multirc": 27_243,
    "record": 138_854,
    "rte": 2_490,
    "wic": 5_428,
    "wsc": 259,
}


def write(folder, name, split, rows):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def local(tmp_path):
    """12 rows of RTE, 3 of CB, and 2 to evaluate on of MRPC."""
    nli = {"premise": "It pours.", "hypothesis": "It rains.", "label": 0}
    write(tmp_path, "rte", "train", [nli] * 12)
    write(tmp_path, "cb", "train", [nli | {"label": 2}] * 3)
    pair = {"sentence1": "It pours.", "sentence2": "It rains."}
    write(tmp_path, "mrpc", "validation", [pair | {"label": 1}, pair | {"label": 0}])
    return tmp_path


def rates(name):
    mixture = seqio.MixtureRegistry.get(name)
    return {t.name: mixture.get_rate(t) for t in mixture.tasks if "train" in t.splits}


def test_registering_needs_no_network(vocabulary, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("no network here")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    names = all_tasks.register(vocabulary)
    assert len(names) == len(set(names))
    assert set(names) <= {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    assert len(show_tasks.rows()) >= len(names)


def test_a_folder_gives_what_it_has(local, vocabulary):
    assert set(all_tasks.register(vocabulary, local)) == {
        RTE,
        CB,
        "taskless_glue_rte_v200_examples",
        "taskless_glue_mrpc_v200_examples",
        MRPC_FROM_QQP,
        *(
            f"taskless_{suite}_examples_{way}"
            for suite in ("super_glue_v102", "glue_v200")
            for way in ("proportional", "temperature", "equal")
        ),
    }
    with pytest.raises(UserError, match=r"no files in folders named .*c4, .*squad"):
        all_tasks.register(vocabulary, local / "rte")


def test_rates_of_local_files(local, vocabulary):
    all_tasks.register(vocabulary, local)
    name = "taskless_super_glue_v102_examples_"
    assert rates(f"{name}proportional") == {RTE: 12, CB: 3}
    assert rates(f"{name}temperature") == {RTE: 12**0.5, CB: 3**0.5}
    assert rates(f"{name}equal") == {RTE: 1, CB: 1}
    # SuperGLUE's label words, each once.
    words = ("entailment", "contradiction", "neutral", "not_entailment")
    assert tasks.labels_of(f"{name}equal") == words


def test_training_examples_come_at_these_rates(local, vocabulary):
    all_tasks.register(vocabulary, local)
    mixture = seqio.MixtureRegistry.get("taskless_super_glue_v102_examples_proportional")
    dataset = mixture.get_dataset(
        {"inputs": 32, "targets": 8}, split="train", shuffle=True, seed=1, num_epochs=None
    )
    examples = dataset.take(600).as_numpy_iterator()
    seen = collections.Counter(vocabulary.decode(e["targets"].tolist()) for e in examples)
    assert set(seen) == {"entailment", "neutral"}  # of RTE, of CB
    assert seen["neutral"] / 600 == pytest.approx(3 / 15, abs=0.05)


class Sized(seqio.FunctionDataSource):
    """A source that only tells its size."""

    def __init__(self, size):
        super().__init__(
            lambda split, shuffle_files: tf.data.Dataset.range(0),
            splits=("train",),
            num_input_examples=None if size is None else {"train": size},
        )


def sized(size, vocabulary):
    return seqio.Task("sized", Sized(size), output_features=tasks.features(vocabulary))


def test_size_rate_by_hand(vocabulary):
    assert mixtures.size_rate(sized(1000, vocabulary)) == 1000
    assert mixtures.size_rate(sized(1000, vocabulary), limit=400) == 400
    assert mixtures.size_rate(sized(1000, vocabulary), limit=400, temperature=2) == 20
    assert mixtures.size_rate(sized(1_000_000, vocabulary)) == 524_288
    assert mixtures.size_rate(sized(1000, vocabulary), examples_per_row=0.5) == 500
    with pytest.raises(UserError, match="sized: its source has no known size"):
        mixtures.size_rate(sized(None, vocabulary))


def test_proportional_rates_are_those_of_t5(vocabulary, monkeypatch):
    rows = SIZES | {"record": 100_730, "wsc": 554}  # as TensorFlow Datasets has them

    def size(self, split):
        name = self.tfds_dataset.name.split("/")[1].split(":")[0].removesuffix(".fixed")
        return rows[name]

    monkeypatch.setattr(seqio.TfdsDataSource, "num_input_examples", size)
    all_tasks.register(vocabulary)
    actual = rates("taskless_super_glue_v102_examples_proportional")
    expected = {f"taskless_super_glue_{n}_v102_examples": size for n, size in SIZES.items()}
    wsc = expected.pop("taskless_super_glue_wsc_v102_examples")
    expected["taskless_super_glue_wsc_v102_simple_train_examples"] = wsc
    assert actual == pytest.approx(expected)
    actual = rates("taskless_super_glue_v102_examples_temperature")
    assert actual == pytest.approx({name: size**0.5 for name, size in expected.items()})


def test_mixtures_have_all_tasks_of_a_suite(vocabulary):
    all_tasks.register(vocabulary)
    mixture = seqio.MixtureRegistry.get("taskless_super_glue_v102_examples_equal")
    measured = [t.name for t in mixture.tasks if "validation" in t.splits]
    assert len(measured) == len(rates(mixture.name)) == 8
    assert "taskless_super_glue_wsc_v102_simple_eval_examples" in measured
    mixture = seqio.MixtureRegistry.get("taskless_glue_v200_examples_equal")
    assert len(rates(mixture.name)) == 9
    assert len([t for t in mixture.tasks if "validation" in t.splits]) == 10  # MNLI has two


def test_rate_of_rows_in_memory(vocabulary):
    rows = [Row(f"row {i}", "x") for i in range(20)]
    task = tasks.register("test_catalogue_rows", {"train": lambda: rows}, vocabulary)
    assert mixtures.size_rate(task) == 20


def test_transfer_has_the_text_of_one_and_the_words_of_the_other(local, vocabulary):
    all_tasks.register(vocabulary, local)
    actual = TaskData(MRPC_FROM_QQP, {"inputs": 32, "targets": 8}, 2).eval_set("validation")
    assert actual.inputs == ["sentence1: It pours. sentence2: It rains."] * 2
    assert actual.targets == ["duplicate", "not_duplicate"]
    assert actual.labels == ("not_duplicate", "duplicate")
    assert measure(actual, Predictions(actual.targets)) == {"f1": 1, "accuracy": 1}
    # One true positive, one false positive: precision 1/2, recall 1.
    said = Predictions(["duplicate", "duplicate"])
    assert measure(actual, said) == {"f1": pytest.approx(2 / 3), "accuracy": 0.5}
    qqp = {"question1": "Why?", "question2": "How?", "label": 1, "idx": 0}
    [row] = paraphrase.QQP_FROM_MRPC.format(tf.data.Dataset.from_tensors(qqp)).as_numpy_iterator()
    assert row["inputs"] == b"question1: Why? question2: How?"
    assert row["targets"] == b"equivalent"


@pytest.mark.parametrize(("source", "target"), [("qqp", "mrpc"), ("mrpc", "qqp")])
def test_transfer_trains_on_one_and_evaluates_the_other(vocabulary, source, target):
    all_tasks.register(vocabulary)
    name = f"taskless_glue_{target}_from_{source}"
    evaluated = seqio.TaskRegistry.get(f"{name}_v200_examples")
    assert evaluated.source.tfds_dataset.name == f"glue/{target}:2.0.0"
    trained = f"taskless_glue_{source}_v200_examples"
    assert list(rates(f"{name}_zeroshot_v200_examples")) == [trained]
    assert tasks.labels_of(evaluated.name) == tasks.labels_of(trained)


def test_sentinel_before_targets(local, vocabulary):
    all_tasks.register(vocabulary, local)
    assert sentinel.register(MRPC_FROM_QQP) == f"{MRPC_FROM_QQP}_sentinel"
    [plain, marked] = (
        list(seqio.TaskRegistry.get(name).get_dataset(split="validation", shuffle=False))
        for name in (MRPC_FROM_QQP, f"{MRPC_FROM_QQP}_sentinel")
    )
    for before, after in zip(plain, marked, strict=True):
        first = vocabulary.vocab_size - 1
        assert after["targets"].numpy().tolist() == [first, *before["targets"].numpy().tolist()]
        assert after["inputs"].numpy().tolist() == before["inputs"].numpy().tolist()


def test_sentinel_in_labels_and_predictions(local, vocabulary):
    all_tasks.register(vocabulary, local)
    name = sentinel.register(MRPC_FROM_QQP)
    actual = TaskData(name, {"inputs": 32, "targets": 8}, 2).eval_set("validation")
    first = vocabulary.vocab_size - 1
    for label, tokens in zip(("not_duplicate", "duplicate"), actual.label_tokens, strict=True):
        expected = [first, *vocabulary.encode(label), vocabulary.eos_id]
        assert tokens[tokens > 0].tolist() == expected
    ranked = Predictions([actual.labels[1], actual.labels[0]])
    assert measure(actual, ranked) == {"f1": 1, "accuracy": 1}
    decoded = Predictions([actual.decode(row) for row in actual.label_tokens[::-1]])
    assert measure(actual, decoded) == {"f1": 1, "accuracy": 1}
    assert measure(actual, Predictions(["duplicate", "not_duplicate"])) == {"f1": 1, "accuracy": 1}


def test_sentinel_keeps_whole_epochs(vocabulary):
    texts = [Row(f"row {i}", "x") for i in range(7)]
    tasks.register("test_catalogue_rows", {"train": lambda: texts}, vocabulary)
    task = seqio.TaskRegistry.get(sentinel.register("test_catalogue_rows"))
    dataset = task.get_dataset(split="train", shuffle=True, seed=1, num_epochs=3)
    actual = [example["inputs_pretokenized"] for example in dataset.as_numpy_iterator()]
    assert [len(set(actual[i : i + 7])) for i in (0, 7, 14)] == [7, 7, 7]


def test_sentinel_needs_a_task(vocabulary):
    with pytest.raises(UserError, match="gone: no such task"):
        sentinel.register("gone")
    seqio.TaskRegistry.add(
        "test_catalogue_tokens", Sized(1), output_features=tasks.features(vocabulary)
    )
    with pytest.raises(UserError, match="test_catalogue_tokens: is not tokenised by SeqIO"):
        sentinel.register("test_catalogue_tokens")


def test_show_tasks(vocabulary, tmp_path):
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "train.jsonl").write_text('{"text": "It rains."}\n')
    all_tasks.register(vocabulary)
    lines = show_tasks.table(show_tasks.rows()).splitlines()
    [race] = [line for line in lines if line.startswith("mrqa_race")]
    assert re.split("  +", race) == [
        "mrqa_race_v100_examples",
        "tfds mrqa/race:1.0.0",
        "validation",
        "squad",
    ]
    all_tasks.register(vocabulary, tmp_path)
    [line] = [line for line in show_tasks.rows() if line[0] == "c4_v220_prefix_lm"]
    assert line[1:3] == (str(tmp_path / "c4"), "train")


def test_benchmarks_alone_are_as_they_were(vocabulary):
    assert set(glue.register_benchmarks(vocabulary)) < set(all_tasks.register(vocabulary))
