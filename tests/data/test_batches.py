"""Batches and evaluation sets."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
import seqio

from prompt_tuning.data import tasks
from prompt_tuning.data.batches import Batching, TaskData
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.errors import UserError

LENGTHS = {"inputs": 12, "targets": 6}
LABELS = ("negative", "positive")
ROWS = [Row(f"number {i}", LABELS[i % 2]) for i in range(12)]
NAME = "test_batches_rows"


@pytest.fixture
def register(vocabulary):
    def registered(rows=tuple(ROWS), name=NAME, labels=LABELS, **options) -> str:
        splits = {split: functools.partial(list, rows) for split in ("train", "validation")}
        tasks.register(name, splits, vocabulary, labels=labels, **options)
        return name

    return registered


def data(task: str = NAME, **options) -> TaskData:
    return TaskData(**{"task": task, "lengths": LENGTHS, "batch_size": 4} | options)


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(batches, count))


def inputs_of(vocabulary, batches) -> list[str]:
    return [vocabulary.decode(r.tolist()) for b in batches for r in b["encoder_input_tokens"]]


def assert_same(a, b) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def test_shapes_and_shifted_targets(register, vocabulary):
    register()
    [batch] = take(data().train_batches(0), 1)
    shapes = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert shapes == {
        "encoder_input_tokens": ((4, 12), np.int32),
        "decoder_input_tokens": ((4, 6), np.int32),
        "decoder_target_tokens": ((4, 6), np.int32),
        "decoder_loss_weights": ((4, 6), np.int32),
    }
    targets = batch["decoder_target_tokens"]
    np.testing.assert_array_equal(batch["decoder_input_tokens"][:, 0], 0)
    np.testing.assert_array_equal(batch["decoder_input_tokens"][:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(batch["decoder_loss_weights"], targets > 0)
    words = {row.inputs: row.targets for row in ROWS}
    for text, row in zip(inputs_of(vocabulary, [batch]), targets, strict=True):
        ids = [*vocabulary.encode(words[text]), 1]
        assert row.tolist() == ids + [0] * (6 - len(ids))


def test_every_row_once_an_epoch_in_a_new_order(register, vocabulary):
    register()
    texts = inputs_of(vocabulary, take(data().train_batches(0), 9))
    epochs = [texts[:12], texts[12:24], texts[24:]]
    for epoch in epochs:
        assert sorted(epoch) == sorted(row.inputs for row in ROWS)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [row.inputs for row in ROWS]


def test_goes_on_where_it_would_be(register):
    register()
    whole = take(data().train_batches(0), 10)
    for start in (1, 3, 7):
        assert_same(take(data().train_batches(start), 10 - start), whole[start:])


def test_order_depends_on_the_seed_alone(register):
    register()
    first, again, other = (take(data(seed=seed).train_batches(0), 3) for seed in (5, 5, 6))
    assert_same(first, again)
    with pytest.raises(AssertionError):
        assert_same(first, other)


@pytest.mark.parametrize("size", [1, 5])
def test_tasks_smaller_than_a_batch_and_remainders(register, vocabulary, size):
    register(ROWS[:size])
    texts = inputs_of(vocabulary, take(data(batch_size=8).train_batches(0), 5))
    assert len(texts) == 40
    counts = {text: texts.count(text) for text in texts}
    assert set(counts) == {row.inputs for row in ROWS[:size]}
    assert set(counts.values()) == {40 // size}


def test_long_inputs_are_cut_before_eos(register, vocabulary):
    text = "word " * 40
    register([Row(text, "positive")])
    expected = [*vocabulary.encode(text)[:11], 1]
    [batch] = take(data(batch_size=1).train_batches(0), 1)
    assert batch["encoder_input_tokens"][0].tolist() == expected
    actual = data().eval_set("validation")
    assert actual.encoder_input_tokens[0].tolist() == expected
    assert actual.inputs == [text]


def test_eval_set(register, vocabulary):
    register()
    actual = data().eval_set("validation")
    assert (actual.task, actual.split, actual.labels) == (NAME, "validation", LABELS)
    assert actual.inputs == [row.inputs for row in ROWS]
    assert actual.targets == [row.targets for row in ROWS]
    assert actual.encoder_input_tokens.shape == (12, 12)
    assert actual.encoder_input_tokens.dtype == actual.label_tokens.dtype == np.int32
    for row, text in zip(actual.encoder_input_tokens, actual.inputs, strict=True):
        ids = [*vocabulary.encode(text), 1]
        assert row.tolist() == ids + [0] * (12 - len(ids))
    assert actual.label_tokens.shape == (2, 6)
    for row, label in zip(actual.label_tokens, LABELS, strict=True):
        ids = [*vocabulary.encode(label), 1]
        assert row.tolist() == ids + [0] * (6 - len(ids))
        assert actual.decode(row) == label
    assert actual.decode([*actual.label_tokens[0], 55, 66]) == "negative"
    assert [fn(actual.targets, ["positive"] * 12) for fn in actual.metric_fns] == [
        {"accuracy": 0.5}
    ]


def test_inputs_of_an_eval_set_are_replaced_with_their_tokens(register):
    register()
    found = data().eval_set("validation")
    shouted = [text.upper() + "!" for text in found.inputs]
    with pytest.raises(UserError, match="inputs were replaced, and encoder_input_tokens are still"):
        dataclasses.replace(found, inputs=shouted)
    tokens = found.encoder_input_tokens.copy()
    other = dataclasses.replace(found, inputs=shouted, encoder_input_tokens=tokens)
    assert other.inputs == shouted and dataclasses.replace(found, target_length=3).inputs


def test_eval_set_of_some_examples(register):
    register()
    whole, some = data().eval_set("validation"), data(eval_examples=5).eval_set("validation")
    at = [whole.inputs.index(text) for text in some.inputs]
    assert len(at) == 5 and at == sorted(set(at)) != [0, 1, 2, 3, 4]
    assert some.targets == [whole.targets[i] for i in at]
    np.testing.assert_array_equal(some.encoder_input_tokens, whole.encoder_input_tokens[at])
    assert data(eval_examples=5).eval_set("validation").inputs == some.inputs
    told = f"validation split: EVAL_EXAMPLES takes 5 of {len(whole.inputs)}"
    assert told in some.notes[0] and "EVAL_EXAMPLES" not in str(whole.notes)
    assert data(eval_examples=12).eval_set("validation").inputs == whole.inputs


def test_what_it_tells_of_the_task(register, vocabulary):
    register()
    assert data().splits == ("train", "validation")
    assert data().labels == LABELS
    assert data().encode("a word") == vocabulary.encode("a word")


def test_eval_set_of_text_to_text(register):
    register([Row("in", "out"), Row("up", "down")], labels=())
    actual = data().eval_set("validation")
    assert actual.targets == ["out", "down"]
    assert actual.labels == ()
    assert actual.label_tokens.shape == (0, 6)


def test_mixture(register, vocabulary):
    register()
    register([Row("other", "positive")], name="test_batches_other", labels=())
    seqio.MixtureRegistry.add("test_batches_mix", [(NAME, 1), ("test_batches_other", 1)])
    mixture = data("test_batches_mix")
    batches = take(mixture.train_batches(0), 8)
    texts = inputs_of(vocabulary, batches)
    assert 0 < texts.count("other") < len(texts)
    assert_same(take(mixture.train_batches(3), 5), batches[3:])
    actual = mixture.eval_sets("validation")
    assert {(e.task, len(e.targets)) for e in actual} == {(NAME, 12), ("test_batches_other", 1)}
    with pytest.raises(UserError, match=f"is a mixture; evaluate its tasks: .*{NAME}"):
        mixture.eval_set("validation")


def test_what_has_no_metrics_is_not_measured(register):
    register()
    register(name="test_batches_other", metric_fns=())
    seqio.MixtureRegistry.add("test_batches_mix", [(NAME, 1), ("test_batches_other", 1)])
    assert [actual.task for actual in data("test_batches_mix").eval_sets("validation")] == [NAME]
    with pytest.raises(UserError, match="test_batches_other: no task with metrics has the split"):
        data("test_batches_other").eval_sets("validation")


def foreign_task(vocabulary, **options) -> None:
    """A task registered the way SeqIO's users do."""
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        columns = {"inputs": ["one", "two"], "targets": ["negative", "positive"]}
        return tf.data.Dataset.from_tensor_slices(columns)

    defaults = {
        "preprocessors": [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        "output_features": tasks.features(vocabulary),
    }
    source = seqio.FunctionDataSource(dataset, splits=["train", "dev"])
    seqio.TaskRegistry.add(NAME, source, **(defaults | options))


def test_tasks_of_other_modules_with_a_postprocessor(vocabulary):
    def polarity(text, example, is_target):
        assert example["inputs_pretokenized"] in (b"one", b"two")
        return {"negative": 0, "positive": 1}[text] if is_target else len(text)

    def off_by(targets, predictions):
        return {"off_by": sum(p - t for t, p in zip(targets, predictions, strict=True))}

    foreign_task(vocabulary, postprocess_fn=polarity, metric_fns=[off_by])
    actual = data().eval_set("dev")
    assert actual.targets == ["negative", "positive"]
    assert actual.metric_fns[0](actual.targets, ["", "abc"]) == {"off_by": 2}
    assert len(take(data().train_batches(0), 3)) == 3


def test_texts_that_a_pipeline_dropped_come_from_its_tokens(vocabulary):
    tokenize = functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False)
    foreign_task(vocabulary, preprocessors=[tokenize, seqio.preprocessors.append_eos])
    actual = data().eval_set("dev")
    assert (actual.inputs, actual.targets) == (["one", "two"], ["negative", "positive"])


@pytest.mark.parametrize("end", [True, False])
def test_whether_inputs_end(vocabulary, end):
    features = tasks.features(vocabulary)
    features["inputs"] = dataclasses.replace(features["inputs"], add_eos=end)
    foreign_task(vocabulary, output_features=features)
    assert data().bare_inputs == (() if end else (NAME,))
    assert (1 in data().eval_set("dev").encoder_input_tokens) == end


def test_cache_that_is_not_there(vocabulary):
    cached = [
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos,
    ]
    foreign_task(vocabulary, preprocessors=cached)
    with pytest.raises(UserError, match=f"{NAME}: is not cached; set USE_CACHED_TASKS = False"):
        data(use_cached=True).train_batches(0)
    assert len(data().eval_set("dev").targets) == 2


def test_rows_are_used_where_a_cache_is_asked_for_in_vain(register):
    register()
    assert len(data(use_cached=True).eval_set("validation").targets) == 12


def test_module_is_imported_first(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_test_tasks.py").write_text(
        "from prompt_tuning import embedded\n"
        "from prompt_tuning.data import tasks\n"
        "from prompt_tuning.data.files import Row\n"
        "vocabulary = tasks.vocabulary(embedded.vocabulary())\n"
        "tasks.register('from_my_module', {'train': lambda: [Row('a', 'b')]}, vocabulary)\n"
    )
    actual = data("from_my_module", module="my_test_tasks").eval_set("train")
    assert actual.targets == ["b"]
    with pytest.raises(UserError, match=r"MIXTURE_OR_TASK_MODULE = 'no\.such\.module'.*No module"):
        data(module="no.such.module")


def test_unknown_task_and_split(register, vocabulary):
    register()
    with pytest.raises(UserError, match=r"'demo_revews'.*did you mean demo_reviews"):
        data("demo_revews")
    with pytest.raises(UserError, match=r"'xyzzy'.*available: .*demo_questions, demo_reviews"):
        data("xyzzy")
    with pytest.raises(UserError, match="no split 'test'; available: train, validation"):
        data().eval_set("test")
    tasks.register(NAME, {"test": lambda: ROWS}, vocabulary)
    with pytest.raises(UserError, match="no split 'train'; available: test"):
        data().train_batches(0)


@pytest.mark.parametrize(
    "lengths",
    [{}, {"inputs": 4}, {"targets": 4}, {"inputs": 0, "targets": 4}, {"inputs": 4, "targets": -1},
     {"inputs": 4, "targets": 4.0}, {"inputs": 4, "targets": 4, "target": 4}],
)  # fmt: skip
def test_impossible_lengths(lengths):
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS"):
        data("demo_topics", lengths=lengths)


def test_impossible_batch_size():
    with pytest.raises(UserError, match="BATCH_SIZE = 0"):
        data("demo_topics", batch_size=0)


def test_targets_that_do_not_fit(register, vocabulary):
    long = "a target of quite a few words"
    size = len(vocabulary.encode(long)) + 1
    register([*ROWS, Row("last", long)], labels=())
    message = rf"'{long}' has {size} tokens.* {size - 1} of TASK_FEATURE_LENGTHS"
    tight = data(lengths={"inputs": 12, "targets": size - 1})
    with pytest.raises(UserError, match=message):
        tight.train_batches(0)
    with pytest.raises(UserError, match=message):
        tight.eval_set("validation")
    exact = data(lengths={"inputs": 12, "targets": size})
    assert len(exact.eval_set("validation").targets) == 13
    rows = np.concatenate([b["decoder_target_tokens"] for b in take(exact.train_batches(0), 4)])
    assert [*vocabulary.encode(long), 1] in rows.tolist()


def test_label_words_that_do_not_fit(register):
    register([Row("text", "positive")], labels=("positive", "neither this nor that at all"))
    with pytest.raises(UserError, match=r"'neither this nor that at all' has .* tokens"):
        data().eval_set("validation")


def test_empty_split(register):
    register([])
    with pytest.raises(UserError, match="'validation' is empty"):
        data().eval_set("validation")
    with pytest.raises(UserError, match="'train' is empty"):
        next(data().train_batches(0))


def test_demo_task():
    actual = data("demo_topics", lengths={"inputs": 64, "targets": 8}).eval_set("test")
    assert len(actual.inputs) == 190
    assert set(actual.targets) == set(actual.labels)
    assert (actual.encoder_input_tokens != 0).sum(axis=1).max() < 64


def test_released_files(shared_data, vocabulary):
    folder = shared_data / "tasks" / "trec_qc"
    labels = json.loads((folder / "dataset_info.json").read_text())["labels"]
    splits = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    files = TextFiles(**splits, labels=labels)
    tasks.register_files(NAME, files, vocabulary)
    whole = data(lengths={"inputs": 48, "targets": 8}, batch_size=35)
    actual = whole.eval_set("test")
    assert actual.inputs[0] == "How far is it from Denver to Aspen ?"
    assert actual.targets[:2] == ["NUM", "LOC"]
    assert [actual.decode(row) for row in actual.label_tokens] == labels
    # 139 batches of 35 are the 4,865 rows of the train split.
    rows = np.concatenate([b["encoder_input_tokens"] for b in take(whole.train_batches(0), 139)])
    ids = [[*vocabulary.encode(row.inputs)[:47], 1] for row in files.rows("train")]
    assert sorted(row[row > 0].tolist() for row in rows) == sorted(ids)


@pytest.mark.parametrize("batching", ["bucketed", "packed"])
def test_other_batchings_resume_and_see_each_example_alike(register, vocabulary, batching):
    register()
    source = data(batching=Batching(batching, bounds=(8, 12)))
    batches = take(source.train_batches(0, positions=2), 24)
    assert_same(take(source.train_batches(5, positions=2), 3), batches[5:8])
    texts = [
        vocabulary.decode(row[segment == n].tolist())
        for batch in batches
        for row, segment in zip(
            batch["encoder_input_tokens"],
            batch.get("encoder_segment_ids", batch["encoder_input_tokens"] > 0),
            strict=True,
        )
        for n in range(1, segment.max() + 1)
    ]
    counts = [texts.count(row.inputs) for row in ROWS]
    # Whole epochs but for the last one, and what waits for its bucket or row to fill.
    assert sum(counts) == len(texts)
    assert max(counts) - min(counts) <= 2


def test_unknown_batching_is_an_error():
    with pytest.raises(UserError, match="BATCHING = 'sorted'"):
        Batching("sorted")


def test_what_cannot_be_packed_is_an_error(register):
    register()
    with pytest.raises(UserError, match="only a prompt that is a prefix"):
        data(batching=Batching("packed")).train_batches(0, positions=None)
