"""Skewed classes: each label word is drawn equally often, and a run resumes at the next batch."""

import collections
import itertools

import numpy as np
import pytest

from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.batching.settings import Batching
from prompt_tuning.data.files import Row
from prompt_tuning.data.variants import sentinel
from prompt_tuning.errors import UserError
from prompt_tuning.testing import clean_registries

LENGTHS = {"inputs": 8, "targets": 4}
COUNTS = {"a": {"no": 60, "yes": 3}, "b": {"ham": 40, "spam": 4, "other": 1}}


@pytest.fixture(autouse=True)
def _tasks(vocabulary):
    with clean_registries():
        for name, counts in COUNTS.items():
            rows = [Row(f"{name} {i}", word) for word, n in counts.items() for i in range(n)]
            splits = {"train": lambda rows=rows: rows}
            tasks.register(name, splits, vocabulary, labels=tuple(counts))
        tasks.register("text", {"train": lambda: [Row("a", "b")]}, vocabulary)
        tasks.add_mixture("both", {"a": 1, "b": 3})
        tasks.add_mixture("mixed", {"a": 1, "text": 1})
        yield


def data(task, **settings) -> TaskData:
    return TaskData(task, LENGTHS, 50, **{"balanced_classes": True} | settings)


def answers(task, batches=20, **settings):
    """Shares of the targets that are drawn."""
    each = data(task, **settings)
    decode = each.provider.output_features["targets"].vocabulary.decode
    drawn = itertools.islice(each.train_batches(0), batches)
    words = [decode(row.tolist()) for batch in drawn for row in batch["decoder_target_tokens"]]
    return {word: n / len(words) for word, n in collections.Counter(words).items()}


def test_each_word_is_drawn_equally_often():
    # Over 4 standard deviations of 1,000 draws.
    assert answers("a") == pytest.approx({"no": 1 / 2, "yes": 1 / 2}, abs=0.07)
    assert answers("b") == pytest.approx(dict.fromkeys(COUNTS["b"], 1 / 3), abs=0.07)
    assert answers("a", balanced_classes=False)["yes"] == pytest.approx(3 / 63, abs=0.03)


def test_a_mixture_keeps_its_rates():
    expected = dict.fromkeys(COUNTS["a"], 1 / 8) | dict.fromkeys(COUNTS["b"], 3 / 12)
    assert answers("both") == pytest.approx(expected, abs=0.07)
    batch = next(data("both").train_batches(0))
    of_a = batch["decoder_target_tokens"][:, 0] == batch["decoder_target_tokens"][0, 0]
    assert len(set(batch["tasks"][of_a])) == 1 and set(batch["tasks"]) == {0, 1}


@pytest.mark.parametrize("task", ["b", "both"])
@pytest.mark.parametrize("kind", ["padded", "bucketed"])
def test_a_later_start_is_the_same_stream(task, kind):
    whole = list(itertools.islice(data(task, batching=Batching(kind)).train_batches(0), 9))
    later = data(task, batching=Batching(kind)).train_batches(6)
    for expected, batch in zip(whole[6:], later, strict=False):
        assert expected.keys() == batch.keys()
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])


def test_all_examples_of_a_word_come_by():
    batches = itertools.islice(data("a").train_batches(0), 4)
    rows = {tuple(row) for batch in batches for row in batch["encoder_input_tokens"].tolist()}
    assert len(rows) == 60  # the inputs of "yes" are among those of "no"


@pytest.mark.parametrize("task", ["text", "mixed"])
def test_what_has_no_label_words(task):
    with pytest.raises(UserError, match="BALANCED_CLASSES = True: text has no label words; set it"):
        data(task).train_batches(0)


@pytest.mark.parametrize(
    ("words", "rows", "missing", "task"),
    [
        (("no", "yes", "maybe"), ("no", "yes"), "'maybe'", "skewed"),
        (("a", "b", "c", "d"), ("d", "b"), "'a' or 'c'", "skewed"),
        (("never mind", "no"), ("no",), "'never mind'", "with_skewed"),
        (("no", "yes"), ("yes", "no"), "", "skewed"),
    ],
)
def test_a_label_word_without_rows_is_named(words, rows, missing, task, vocabulary):
    texts = [Row(f"text {i}", word) for i, word in enumerate(rows)]
    tasks.register("skewed", {"train": lambda: texts}, vocabulary, labels=words)
    tasks.add_mixture("with_skewed", {"a": 1, "skewed": 1})
    if not missing:
        data(task).train_batches(0)
        return
    message = f"BALANCED_CLASSES = True: no training example of skewed is {missing}; add some"
    with pytest.raises(UserError, match=message):
        data(task).train_batches(0)


def test_the_reason_of_sentinels_is_named(vocabulary):
    with pytest.raises(
        UserError, match=r"a_sentinel is streamed, since SENTINEL_TARGETS .* False$"
    ):
        data(sentinel.register("a")).train_batches(0)


def test_it_is_a_setting_of_the_training():
    settings = [data("a", balanced_classes=value).settings for value in (True, False)]
    assert [name for name in settings[0] if settings[0][name] != settings[1][name]] == ["BATCHING"]


@pytest.mark.parametrize("words", [("no",), ("no", "yes", "nay"), ("no", "yes", "nay", "aye")])
def test_several_targets_for_one_word_are_refused(words, vocabulary):
    """They would let this word be drawn more often, where a postprocessor takes them for it."""
    labels = words[:2] if len(words) > 1 else ("no",)
    rows = [Row(f"text {i}", word) for i, word in enumerate((*words, "naught") * 3)]
    tasks.register("equal", {"train": lambda: rows}, vocabulary, labels=labels)
    with pytest.raises(
        UserError, match=f"equal has {len(labels)} label words, but {len(words) + 1} "
    ):
        next(data("equal").train_batches(0))
