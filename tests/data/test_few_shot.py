"""A few training examples a class."""

import collections

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data import source, tasks
from prompt_tuning.data.batches import Batching, TaskData
from prompt_tuning.data.catalogue import all_tasks, glue, text_task
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.data.metrics import accuracy
from prompt_tuning.data.readers import local_files
from prompt_tuning.data.variants import few_shot, sentinel
from prompt_tuning.data.variants.few_shot import FewShot
from prompt_tuning.errors import UserError

LABELS = ("no", "yes", "maybe")
ROWS = [Row(f"text {i}", LABELS[i % 7 % 3]) for i in range(60)]
LENGTHS = {"inputs": 8, "targets": 4}
NAME = "test_few_shot"


@pytest.fixture
def task(vocabulary) -> str:
    rows = {"train": lambda: ROWS, "validation": lambda: ROWS[:5]}
    tasks.register(NAME, rows, vocabulary, labels=LABELS)
    return NAME


@pytest.fixture
def plain(vocabulary) -> str:
    """A task in plain SeqIO whose preprocessors leave some examples out and double others."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        rows = [Row(f"text {i}", str(i)) for i in range(20)]
        return tf.data.Dataset.from_tensor_slices(
            {"inputs": [row.inputs for row in rows], "targets": [row.targets for row in rows]}
        )

    def odd_twice(examples: tf.data.Dataset) -> tf.data.Dataset:
        odd = examples.filter(lambda x: tf.strings.to_number(x["targets"], tf.int32) % 2 == 1)
        return odd.flat_map(lambda x: tf.data.Dataset.from_tensors(x).repeat(2))

    name = f"{NAME}_plain"
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=("train", "validation")),
        preprocessors=[
            odd_twice,
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=tasks.features(vocabulary),
        metric_fns=[accuracy],
        postprocess_fn=lambda text, **_: text.upper(),
    )
    return name


def chosen(name: str) -> list[Row]:
    task = seqio.TaskRegistry.get(name)
    return few_shot.read_rows(task, "train", LENGTHS, False)


def register(name: str, k: int, seed: int = 0) -> str:
    return few_shot.register(name, FewShot(k, seed), LENGTHS, False)


def test_is_balanced_seeded_and_nested(task):
    names = {(k, seed): register(task, k, seed) for k in (1, 4, 9) for seed in (0, 1)}
    assert names[4, 1] == "test_few_shot_4shot_seed1"
    actual = {key: chosen(name) for key, name in names.items()}
    for (k, _), rows in actual.items():
        assert collections.Counter(row.targets for row in rows) == dict.fromkeys(LABELS, k)
        assert len(set(rows)) == len(rows) and set(rows) <= set(ROWS)
        assert [ROWS.index(row) for row in rows] == sorted(ROWS.index(row) for row in rows)
    assert actual[4, 0] == chosen(register(task, 4, 0))
    assert actual[9, 0] != actual[9, 1]
    assert set(actual[1, 0]) < set(actual[4, 0]) < set(actual[9, 0])
    assert tasks.labels_of(names[4, 1]) == LABELS


def test_every_example_can_be_chosen(task):
    counts = collections.Counter(row for s in range(60) for row in chosen(register(task, 5, s)))
    of_class = collections.Counter(row.targets for row in ROWS)
    for row in ROWS:  # a binomial count, five standard deviations around its mean
        share = 5 / of_class[row.targets]
        assert abs(counts[row] - 60 * share) < 5 * np.sqrt(60 * share * (1 - share))


@pytest.mark.parametrize("batching", ["padded", "bucketed", "packed"])
def test_trains_on_these_and_validates_on_all(task, vocabulary, batching):
    name = register(task, 2)
    data = TaskData(name, LENGTHS, 6, batching=Batching(batching))
    rows = chosen(name)
    wanted = {tuple(vocabulary.encode(row.inputs)) for row in rows}
    batches = data.train_batches(0)
    rows = [row for _ in range(20) for row in next(batches)["encoder_input_tokens"]]
    ids = np.concatenate(rows)
    ends = np.flatnonzero(ids == vocabulary.eos_id) + 1
    actual = {tuple(part[(part > 0) & (part != 1)].tolist()) for part in np.split(ids, ends)[:-1]}
    assert actual == wanted
    assert data.eval_set("validation").inputs == [row.inputs for row in ROWS[:5]]
    assert data.labels == LABELS


def test_a_task_of_plain_seqio(plain):
    name = register(plain, 4, 3)
    data = TaskData(name, LENGTHS, 4)
    everything = [Row(f"text {i}", str(i)) for i in range(1, 20, 2) for _ in range(2)]
    rows = chosen(name)
    assert len(rows) == 4 and set(rows) <= set(everything)
    epochs = data.train_batches(0)
    one, two = (sorted(map(tuple, next(epochs)["encoder_input_tokens"])) for _ in range(2))
    assert (
        one
        == two
        == sorted(map(tuple, TaskData(name, LENGTHS, 4).eval_set("train").encoder_input_tokens))
    )
    actual = data.eval_set("validation")
    assert actual.inputs == [row.inputs for row in everything]
    [metric] = actual.metric_fns
    assert metric(["a"] * 20, ["A"] * 20) == {"accuracy": 1.0}  # through its postprocessor


def test_no_label_words_is_k_in_all(task, vocabulary):
    tasks.register(task, {"train": lambda: ROWS}, vocabulary)
    assert len(chosen(register(task, 7))) == 7


def test_a_mixture_keeps_its_rates(task, plain, vocabulary):
    rows = {"validation": lambda: ROWS[:5]}
    tasks.register(f"{NAME}_dev", rows, vocabulary)
    parts = [(task, 3.0), (plain, 1.0), (f"{NAME}_dev", 1.0)]
    seqio.MixtureRegistry.add(f"{NAME}_mixture", parts)
    mixture = seqio.MixtureRegistry.get(register(f"{NAME}_mixture", 2))
    assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == {
        f"{task}_2shot_seed0": 3.0,
        f"{plain}_2shot_seed0": 1.0,
        f"{NAME}_dev": 1.0,
    }
    batches = TaskData(mixture.name, LENGTHS, 8).train_batches(0)
    actual = {tuple(row) for _ in range(9) for row in next(batches)["encoder_input_tokens"]}
    assert len(actual) == 8  # two of each of three classes, and two


def test_benchmarks(shared_data, vocabulary):
    text_task.register(
        [task for task in all_tasks.TASKS if "cb_v102" in task.task],
        vocabulary,
        shared_data / "tasks",
    )
    name = "taskless_super_glue_cb_v102_examples"
    lengths = {"inputs": 64, "targets": 8}
    limited = few_shot.register(name, FewShot(16), lengths, False)
    actual = TaskData(limited, lengths, 4).eval_set("train")
    labels = ("entailment", "contradiction", "neutral")
    assert collections.Counter(actual.targets) == dict.fromkeys(labels, 16)
    whole = TaskData(name, lengths, 4)
    assert set(actual.inputs) <= set(whole.eval_set("train").inputs)
    scored = whole.eval_set("validation")
    again = TaskData(limited, lengths, 4).eval_set("validation")
    np.testing.assert_array_equal(scored.encoder_input_tokens, again.encoder_input_tokens)
    assert [fn.__name__ for fn in again.metric_fns] == [fn.__name__ for fn in scored.metric_fns]
    too_many = TaskData(few_shot.register(name, FewShot(17), lengths, False), lengths, 4)
    with pytest.raises(UserError, match=r"FEW_SHOT = 17: .* only 16 .* of the class 'neutral'"):
        too_many.train_batches(0)
    assert isinstance(seqio.TaskRegistry.get(name).source, local_files.FolderSource)


def test_the_users_own_files(tmp_path, vocabulary):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{row.inputs},{row.targets}\n" for row in ROWS))
    files = TextFiles(train=str(path), validation=str(path), labels=LABELS)
    options = {"task": None, "files": files, "vocabulary": vocabulary, "lengths": LENGTHS}
    data = source.task_data(**options, batch_size=6, few_shot=2, few_shot_seed=4)
    assert data.task == "files_2shot_seed4"
    actual = data.eval_set("train").targets
    assert collections.Counter(actual) == dict.fromkeys(LABELS, 2)
    assert len(data.eval_set("validation").targets) == 60


@pytest.mark.parametrize(
    ("k", "seed", "message"),
    [
        (0, 0, "FEW_SHOT = 0: must be a whole number from 1"),
        (True, 0, "FEW_SHOT = True: must be a whole number from 1"),
        ([1], 0, "FEW_SHOT = .1.: must be a whole number from 1"),
        (3, -1, "FEW_SHOT_SEED = -1: must be"),
    ],
)
def test_impossible_settings(task, k, seed, message):
    with pytest.raises(UserError, match=message):
        register(task, k, seed)


def test_too_few(task):
    with pytest.raises(UserError, match=r"FEW_SHOT = 99: test_few_shot has only .* 'no'"):
        chosen(register(task, 99))


def test_benchmarks_are_scored_under_their_own_names():
    scores = {"accuracy": 0.5, "mean_3class_f1": 0.5, "f1": 0.5, "exact_match": 0.5, "em": 0.5}
    names = [f"{name}_v102" for name in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic")]
    results = {f"taskless_super_glue_{name}_examples_16shot_seed3": scores for name in names}
    assert glue.scores(results) == {}
    results["taskless_super_glue_wsc_v102_simple_eval_examples"] = scores
    assert glue.scores(results) == {"super_glue_score": pytest.approx(0.5)}


@pytest.mark.parametrize("other", ["", "_32shot_seed3", "_16shot_seed4"])
def test_a_task_is_in_a_score_once(other):
    """With all examples and with few, or with other few ones; the last one counted before."""
    name = "taskless_super_glue_cb_v102_examples"
    results = {f"{name}_16shot_seed3": {"accuracy": 0.1}, f"{name}{other}": {"accuracy": 0.9}}
    with pytest.raises(UserError, match=rf"{name}_16shot_seed3 and {name}{other} are one task"):
        glue.scores(results)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_with_a_sentinel_the_same_examples_are_chosen(task, k):
    with_sentinel = sentinel.register(task)
    assert chosen(register(with_sentinel, k)) == chosen(register(task, k))
    mixed = few_shot.FewShot(k).choose(
        seqio.TaskRegistry.get(with_sentinel), [row.targets for row in ROWS]
    )
    assert len(mixed) == k * len(LABELS)


def test_a_streamed_task_with_a_sentinel(plain):
    rows = chosen(plain)
    assert chosen(sentinel.register(plain)) == rows and rows


@pytest.mark.parametrize("targets", [["a", "b", "A"], ["a ", "b", "a"]])
def test_targets_that_are_no_label_words_are_told(targets):
    """Though a postprocessor may equate them: examples would be drawn from the others alone."""
    with pytest.raises(UserError, match=r"of 1 training examples is none of the label words 'a'"):
        few_shot.by_class(targets, ["a", "b"], 0)
    assert len(few_shot.by_class(targets, [], 0)[0]) == 3
