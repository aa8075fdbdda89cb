"""The tasks of GLUE and SuperGLUE on real examples and as TensorFlow Datasets has them."""

import json
import lzma
import re
import socket

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from prompt_tuning.data import show_tasks, tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import glue as benchmarks
from prompt_tuning.data.catalogue import text_formats
from prompt_tuning.data.catalogue.glue import BENCHMARKS, TFDS, register_benchmarks
from prompt_tuning.data.readers import local_files
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import Predictions

SUSAN = (
    "Susan wanted to have a birthday party. She called all of her friends. She has five friends. "
    "Her mom said that Susan can invite them all to the party. Her first friend could not go to "
    "the party because she was sick. Her second friend was going out of town. Her third friend "
    "was not so sure if her parents would let her. The fourth friend said maybe. The fifth friend "
    "could go to the party for sure. Susan was a little sad. On the day of the party, all five "
    "friends showed up. Each friend had a present for Susan. Susan was happy and sent each friend "
    "a thank you card the next week."
)
SERENA = (
    "query: Flying start: @placeholder seemed to be cruising towards victory when she took the "
    "first set with minimal fuss entities: Anna Schmiedlova, French Open, Garbine Muguruza, Grand "
    "Slam, Li Na, Open, Roland Garros, Serena, Serena Williams, Spanish, Venezuelan, Venus, "
    "Williams passage: Serena Williams was given the worst beating of her Grand Slam career in a "
    "sensational upset at the French Open today when she was beaten 6-2, 6-2 by 20 year-old "
    "Garbine Muguruza. The six-feet tall world No 35, of Spanish and Venezuelan heritage, took "
    "advantage of windy and cold conditions to blow away the top seed in the second round and "
    "keep the shocks coming at Roland Garros. The women\u2019s draw has been blown wide open as, "
    "for the first time in the Open era, the top two seeds are out before the third round "
    "following Li Na\u2019s early demise. No 1 seed Serena defeated 6-2, 6-2 by Garbine Muguruza "
    "Venus beaten 2-6, 6-3, 6-4 by Anna Schmiedlova Williams sisters were due to meet in third "
    "round at Roland Garros"
)

# Task, row of its validation split, inputs, target.
REAL = [
    (
        "super_glue_boolq_v102",
        347,
        "passage: Skunks as pets -- It is currently legal to keep skunks as pets in Britain "
        "without a license. question: can you own a skunk in the uk",
        "True",
    ),
    (
        "super_glue_cb_v102",
        14,
        "hypothesis: they should abolish it premise: A: Your turn. B: Okay. Uh, I don't think "
        "they should abolish it.",
        "contradiction",
    ),
    ("super_glue_cb_v102", 1, None, "neutral"),
    (
        "super_glue_copa_v102",
        58,
        "choice1: He took a nap. choice2: He ran a marathon. premise: The man fainted. "
        "question: cause",
        "choice2",
    ),
    (
        "super_glue_multirc_v102",
        2147,
        f"question: How many people did Susan call? answer: 5 paragraph: {SUSAN}",
        "True",
    ),
    (
        "super_glue_multirc_v102",
        2149,
        f"question: How many people did Susan call? answer: 6 paragraph: {SUSAN}",
        "False",
    ),
    ("super_glue_record_v102", 10, SERENA, "Venus"),
    (
        "super_glue_rte_v102",
        208,
        "hypothesis: Drummondville contains the girl. premise: The girl was found in "
        "Drummondville.",
        "not_entailment",
    ),
    (
        "super_glue_wic_v102",
        0,
        "sentence1: An emerging professional class. sentence2: Apologizing for losing your "
        "temper, even though you were badly provoked, showed real class. word: class",
        "False",
    ),
    (
        "super_glue_wsc_v102_simple_eval",
        54,
        "Jane gave Joan candy because *she* wasn't hungry.",
        "Jane",
    ),
    (
        "super_glue_wsc_v102_simple_eval",
        42,  # the index in the file is that of "use"
        "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the "
        "magic pebble in an iron safe . Some day they might want to use *it* , but really for "
        "now, what more could they wish for?",
        "safe",
    ),
    (
        "super_glue_wsc_v102_simple_eval",
        28,  # the file has "The lake"
        "The path to the lake was blocked, so we couldn't use *it* .",
        "the lake",
    ),
    (
        "glue_cola_v200",
        0,
        "sentence: The sailors rode the breeze clear of the rocks.",
        "acceptable",
    ),
    ("glue_cola_v200", 371, "sentence: Was sunk.", "unacceptable"),
    ("glue_sst2_v200", 79, "sentence: cool ?", "positive"),
    ("glue_sst2_v200", 0, "sentence: one long string of cliches", "negative"),
    (
        "glue_mrpc_v200",
        16,
        "sentence1: The stock has risen 44 cents in recent days. sentence2: The stock had risen "
        "44 cents in the past four trading sessions.",
        "equivalent",
    ),
    ("glue_mrpc_v200", 194, None, "not_equivalent"),
    (
        "glue_stsb_v200",
        145,  # 1.25
        "sentence1: A man is dancing. sentence2: A man is singing.",
        "1.2",
    ),
    ("glue_stsb_v200", 1, None, "4.8"),  # 4.75
    ("glue_stsb_v200", 0, None, "5.0"),
    (
        "glue_qnli_v200",
        192,
        "question: Who was the first Warsaw President? sentence: The mayor of Warsaw is called "
        "President.",
        "not_entailment",
    ),
    (
        "glue_rte_v200",
        208,
        "sentence1: The girl was found in Drummondville. sentence2: Drummondville contains the "
        "girl.",
        "not_entailment",
    ),
    (
        "glue_wnli_v200",
        1,
        "sentence1: Jane knocked on Susan's door but she did not answer. sentence2: Susan did "
        "not answer.",
        "entailment",
    ),
]
LOCAL = [benchmark for benchmark in BENCHMARKS if benchmark.local]


def name(short: str) -> str:
    return f"taskless_{short}_examples"


def benchmark_of(short: str) -> benchmarks.Benchmark:
    [actual] = [benchmark for benchmark in BENCHMARKS if benchmark.task == name(short)]
    return actual


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("no network here")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module")
def head(shared_data, tmp_path_factory):
    """The first rows of each data set, in a folder of the same layout."""
    folder = tmp_path_factory.mktemp("tasks")
    for benchmark in LOCAL:
        name = benchmark.local.folder
        (folder / name).mkdir(exist_ok=True)
        for path in (shared_data / "tasks" / name).glob("*.jsonl*"):
            with (lzma.open if path.suffix == ".xz" else open)(path, "rb") as file:
                lines = [line for line, _ in zip(file, range(12), strict=False)]
            (folder / name / path.name.removesuffix(".xz")).write_bytes(b"".join(lines))
    return folder


def examples(dataset) -> list[dict]:
    return list(dataset.as_numpy_iterator())


def formatted(benchmark: benchmarks.Benchmark, example: dict) -> list[tuple[str, str]]:
    """Inputs and targets made of one example of TensorFlow Datasets."""
    rows = seqio.utils.tf.data.Dataset.from_tensors(example)
    actual = examples(benchmark.format(rows))
    return [(row["inputs"].decode(), row["targets"].decode()) for row in actual]


def eval_set(short: str, split: str = "validation"):
    return TaskData(name(short), {"inputs": 64, "targets": 32}, 2).eval_set(split)


@pytest.mark.parametrize(
    ("short", "row", "inputs", "target"), REAL, ids=[f"{short}-{row}" for short, row, *_ in REAL]
)
def test_text_of_real_examples(shared_data, vocabulary, short, row, inputs, target):
    register_benchmarks(vocabulary, shared_data / "tasks")
    source = seqio.TaskRegistry.get(name(short)).source
    rows = source.get_dataset("validation", shuffle=False).skip(row).take(1)
    [actual, *_] = examples(benchmark_of(short).format(rows))
    assert actual["targets"].decode() == target
    assert inputs is None or actual["inputs"].decode() == inputs


def test_every_local_task_has_a_real_example():
    tested = {name(short) for short, *_ in REAL}
    assert {b.task for b in LOCAL if "_simple_train" not in b.task} == tested


# What the shared data do not have.
@pytest.mark.parametrize(
    ("short", "example", "expected"),
    [
        (
            "glue_qqp_v200",
            {"question1": "Why?", "question2": "How?", "label": 1, "idx": 0},
            ("question1: Why? question2: How?", "duplicate"),
        ),
        (
            "glue_mnli_matched_v200",
            {"premise": "It pours.", "hypothesis": "It rains.", "label": 1, "idx": 0},
            ("hypothesis: It rains. premise: It pours.", "neutral"),
        ),
        (
            "glue_ax_v200",
            {"premise": "It pours.", "hypothesis": "It rains.", "label": -1, "idx": 0},
            ("hypothesis: It rains. premise: It pours.", "<unk>"),
        ),
        (
            "super_glue_axb_v102",
            {"sentence1": "It pours.", "sentence2": "It rains.", "label": 0, "idx": 0},
            ("hypothesis: It rains. premise: It pours.", "entailment"),
        ),
        (
            "super_glue_axg_v102",
            {"premise": "It pours.", "hypothesis": "It rains.", "label": 1, "idx": 0},
            ("hypothesis: It rains. premise: It pours.", "not_entailment"),
        ),
        (
            "super_glue_multirc_v102",
            {
                "paragraph": "<b>Sent 1: </b>One.<br><b>Sent 2: </b>Two.<br>",
                "question": "Which?",
                "answer": "",
                "label": 0,
                "idx": {"paragraph": 3, "question": 4, "answer": 5},
            },
            ("question: Which? answer:  paragraph: Sent 1: One. Sent 2: Two. ", "False"),
        ),
        (
            "super_glue_wsc_v102_simple_eval",
            {
                "text": 'The pony threw him. "Good for him," he said. ',
                "span1_text": "pony",
                "span1_index": 1,
                "span2_text": "him",
                "span2_index": 6,
                "label": 0,
                "idx": 0,
            },
            ('The pony threw him. "Good for *him* ," he said.', "pony"),
        ),
    ],
)
def test_text_of_other_examples(short, example, expected):
    assert formatted(benchmark_of(short), example) == [expected]


def test_record_has_an_example_for_each_answer():
    example = {
        "passage": "It rained\n@highlight\nIt poured.\n@highlight\nIt stopped",
        "query": "@placeholder is a town.",
        "entities": ["Bonn", "Rome", "Ulm"],
        "answers": ["Rome", "Ulm"],
        "idx": {"passage": 7, "query": 8},
    }
    inputs = (
        "query: @placeholder is a town. entities: Bonn, Rome, Ulm passage: It rained. It poured. "
        "It stopped"
    )
    record = benchmark_of("super_glue_record_v102")
    assert formatted(record, example) == [(inputs, "Rome"), (inputs, "Ulm")]
    none = np.zeros(0, object).astype("S")
    assert formatted(record, example | {"answers": none}) == [(inputs, text_formats.HIDDEN)]


def test_wsc_trains_on_true_examples_only(shared_data, vocabulary):
    register_benchmarks(vocabulary, shared_data / "tasks")
    task = seqio.TaskRegistry.get(name("super_glue_wsc_v102_simple_train"))
    assert tuple(task.splits) == ("train",)
    actual = examples(task.get_dataset(split="train", shuffle=False))
    assert len(actual) == 259  # dataset_info.json
    assert all(example["label"] == 1 for example in actual)
    for example in actual:
        assert re.search(r"\*\w+\*", example["inputs_pretokenized"].decode())
        assert example["targets_pretokenized"].decode() in example["inputs_pretokenized"].decode()


@pytest.mark.parametrize(
    "benchmark",
    [b for b in LOCAL if "validation" in b.splits],
    ids=lambda benchmark: benchmark.task,
)
def test_right_answers_score_best_and_wrong_ones_nothing(head, vocabulary, benchmark):
    register_benchmarks(vocabulary, head)
    actual = TaskData(benchmark.task, {"inputs": 64, "targets": 32}, 2).eval_set("validation")
    assert actual.labels == benchmark.labels == tasks.labels_of(benchmark.task)
    scores = measure(actual, Predictions(actual.targets))
    if benchmark.name == "wsc":
        # Naming the noun of the example is right where the label says that it is the right one.
        files = (head / "wsc" / "validation.jsonl").read_text().splitlines()
        assert scores == {"accuracy": np.mean([json.loads(line)["label"] for line in files])}
        return
    assert all(value == pytest.approx(1) for value in scores.values())
    wrong = measure(actual, Predictions(["nothing at all"] * len(actual.targets)))
    assert all(value <= 0 for value in wrong.values())


def test_multirc_rows_are_grouped_by_question(head, vocabulary):
    register_benchmarks(vocabulary, head)
    actual = eval_set("super_glue_multirc_v102")
    rows = [
        json.loads(line)
        for line in (head / "multirc" / "validation.jsonl").read_text().splitlines()
    ]
    questions = [row["qid"] for row in rows]
    assert 1 < len(set(questions)) < len(questions)
    wrong = ["True" if actual.targets[0] == "False" else "False", *actual.targets[1:]]
    scores = measure(actual, Predictions(wrong))
    assert scores["exact_match"] == pytest.approx(1 - 1 / len(set(questions)))


def test_trains_from_local_files(head, vocabulary):
    register_benchmarks(vocabulary, head)
    data = TaskData(name("super_glue_cb_v102"), {"inputs": 32, "targets": 8}, 4)
    batches = data.train_batches(0)
    epoch = np.concatenate([next(batches)["encoder_input_tokens"] for _ in range(3)])
    assert len({row.tobytes() for row in epoch}) == 12
    mixture = name("super_glue_wsc_and_dev_v102_simple")
    data = TaskData(mixture, {"inputs": 64, "targets": 8}, 2)
    assert next(data.train_batches(0))["encoder_input_tokens"].shape == (2, 64)
    [validation] = data.eval_sets("validation")
    assert validation.task == name("super_glue_wsc_v102_simple_eval")


def test_registering_twice_and_over_another_source(head, vocabulary):
    everything = register_benchmarks(vocabulary)
    assert register_benchmarks(vocabulary) == everything
    local = register_benchmarks(vocabulary, str(head))
    assert set(local) < set(everything)
    task = seqio.TaskRegistry.get(name("glue_sst2_v200"))
    assert isinstance(task.source, local_files.FolderSource)
    assert tasks.hidden_splits(task) == ()
    register_benchmarks(vocabulary)
    assert tasks.hidden_splits(seqio.TaskRegistry.get(task.name)) == ("test",)


def test_names_and_sources_need_no_network(vocabulary, no_network):
    names = register_benchmarks(vocabulary, TFDS)
    assert len(names) == len(set(names)) == len(BENCHMARKS) + 2
    public = "boolq cb copa multirc record rte wic axb axg"
    expected = {name(f"super_glue_{task}_v102") for task in public.split()}
    expected |= {name(f"super_glue_wsc_v102_simple_{part}") for part in ("train", "eval")}
    expected |= {name("super_glue_wsc_and_dev_v102_simple"), name("glue_mnli_and_dev_v200")}
    public = "cola sst2 mrpc qqp stsb mnli mnli_matched mnli_mismatched qnli rte wnli ax"
    expected |= {name(f"glue_{task}_v200") for task in public.split()}
    assert set(names) == expected
    assert tuple(seqio.TaskRegistry.get(name("glue_ax_v200")).splits) == ("test",)
    assert tasks.labels_of(name("glue_sst2_v200")) == ("negative", "positive")
    assert tasks.labels_of(name("glue_stsb_v200")) == ()
    mnli = ("entailment", "neutral", "contradiction")
    assert tasks.labels_of(name("glue_mnli_and_dev_v200")) == mnli


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.task)
def test_labels_and_versions_are_those_of_tensorflow_datasets(benchmark):
    suite, config, version = re.split("[/:]", benchmark.tfds_name)
    builder = tfds.builder_cls(suite)
    actual = builder.builder_configs[config]
    assert str(actual.version) == version
    if benchmark.labels:
        assert tuple(actual.label_classes) == benchmark.labels


@pytest.mark.parametrize(
    "benchmark", [b for b in BENCHMARKS if b.name != "wsc"], ids=lambda benchmark: benchmark.task
)
def test_formats_read_what_tensorflow_datasets_has(benchmark, no_network):
    policy = tfds.testing.MockPolicy.USE_CODE  # random examples of the builder's features
    with tfds.testing.mock_data(num_examples=1, policy=policy):
        dataset = tfds.load(benchmark.tfds_name.split(":")[0], split=benchmark.splits[0])
        [example, *_] = examples(benchmark.format(dataset))
    if benchmark.labels:
        assert example["targets"].decode() in benchmark.labels


def test_scores_by_task(vocabulary):
    super_glue = {
        b.task: {"a": 0.5, "b": 0.7}
        for b in BENCHMARKS
        if b.suite == "super_glue" and b.metrics and b.name not in ("axb", "axg")
    }
    assert len(super_glue) == 8
    assert benchmarks.scores(super_glue) == {"super_glue_score": pytest.approx(0.6)}
    del super_glue[name("super_glue_wsc_v102_simple_eval")]
    assert benchmarks.scores(super_glue) == {}
    glue = {
        b.task: {"a": 0.25}
        for b in BENCHMARKS
        if b.suite == "glue" and b.name not in ("mnli", "ax")
    }
    assert benchmarks.scores(glue) == {"glue_score": pytest.approx(0.25)}


GOOD = {"premise": "p", "hypothesis": "h", "label": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"label": 2}, r"'label' is 2, not a number from 0 to 1 \(entailment, not_"),
        (GOOD | {"label": -1}, "'label' is -1, not a number from 0 to 1"),
        (GOOD | {"label": True}, "'label' is True"),
        (GOOD | {"premise": 3}, "'premise' is 3, not a text"),
        ({"premise": "p", "label": 0}, "no field 'hypothesis'; available: label, premise"),
    ],
)
def test_rows_that_are_not_as_they_must_be(tmp_path, vocabulary, row, message):
    (tmp_path / "rte").mkdir()
    lines = [json.dumps(GOOD), json.dumps(row)]
    (tmp_path / "rte" / "train.jsonl").write_text("\n".join(lines))
    assert set(register_benchmarks(vocabulary, tmp_path)) == {
        name("super_glue_rte_v102"),
        name("glue_rte_v200"),
    }
    source = seqio.TaskRegistry.get(name("super_glue_rte_v102")).source
    with pytest.raises(
        UserError, match=r"train\.jsonl, line 2: .*" + message.split("line 2: ")[-1]
    ):
        source.get_dataset("train")


def test_folders_without_data(tmp_path, vocabulary):
    with pytest.raises(UserError, match=r"no files in folders named axb, axg, boolq, cb, cola"):
        register_benchmarks(vocabulary, tmp_path)
    (tmp_path / "cb").mkdir()
    (tmp_path / "cb" / "train.jsonl").touch()
    register_benchmarks(vocabulary, tmp_path)
    with pytest.raises(UserError, match=r"train\.jsonl: no rows"):
        seqio.TaskRegistry.get(name("super_glue_cb_v102")).source.get_dataset("train")


def test_multirc_needs_its_passages(head, tmp_path, vocabulary):
    (tmp_path / "multirc").mkdir()
    rows = (head / "multirc" / "train.jsonl").read_bytes()
    (tmp_path / "multirc" / "train.jsonl").write_bytes(rows)
    register_benchmarks(vocabulary, tmp_path)
    with pytest.raises(UserError, match=r"needs passages_train\.jsonl in the same folder"):
        seqio.TaskRegistry.get(name("super_glue_multirc_v102")).source.get_dataset("train")


def test_multirc_needs_each_passage(head, tmp_path, vocabulary):
    (tmp_path / "multirc").mkdir()
    rows = (head / "multirc" / "train.jsonl").read_bytes()
    (tmp_path / "multirc" / "train.jsonl").write_bytes(rows)
    (tmp_path / "multirc" / "passages_train.jsonl").write_text('{"idx": 99, "text": "t"}\n')
    register_benchmarks(vocabulary, tmp_path)
    with pytest.raises(UserError, match=r"passages_train\.jsonl: no passage 0, which train\.jsonl"):
        seqio.TaskRegistry.get(name("super_glue_multirc_v102")).source.get_dataset("train")


@pytest.mark.parametrize("change", [{"span2_text": "her"}, {"span1_text": ""}])
def test_wsc_needs_its_spans(tmp_path, vocabulary, change):
    row = {"text": "Ann said that she slept.", "span1_text": "Ann", "span1_index": 0, "label": 1}
    row |= {"span2_text": "she", "span2_index": 3}
    (tmp_path / "wsc").mkdir()
    lines = [json.dumps(row), json.dumps(row | change)]
    (tmp_path / "wsc" / "train.jsonl").write_text("\n".join(lines))
    register_benchmarks(vocabulary, tmp_path)
    with pytest.raises(UserError, match=r"train\.jsonl, line 2: its spans are not in its text"):
        seqio.TaskRegistry.get(name("super_glue_wsc_v102_simple_train")).source.get_dataset("train")


def test_show_tasks(head, vocabulary):
    register_benchmarks(vocabulary)
    lines = show_tasks.table(show_tasks.rows()).splitlines()
    assert lines[0].split() == list(show_tasks.HEAD)
    [sst2] = [line for line in lines if line.startswith("taskless_glue_sst2_v200_examples ")]
    assert re.split("  +", sst2) == [
        "taskless_glue_sst2_v200_examples",
        "tfds glue/sst2:2.0.0",
        "train validation test",
        "accuracy",
        "negative, positive",
    ]
    assert any("mixture of 3" in line for line in lines)
    register_benchmarks(vocabulary, head)
    assert str(head / "sst2") in show_tasks.table(show_tasks.rows())
