"""Span corruption and prefix LM: what each token becomes, and the C4 tasks over local texts."""

import json
import lzma

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.batching import tokens
from prompt_tuning.data.catalogue import c4, denoising
from prompt_tuning.data.catalogue.text_task import register
from prompt_tuning.errors import UserError
from prompt_tuning.pretraining import mixture

FIRST = 999  # id of <extra_id_0> in these tests


def restored(inputs, targets, first=FIRST):
    """The text that was corrupted: each sentinel gives way to its span."""
    spans, number = {}, first + 1
    for token in targets:
        if token == number - 1:
            number -= 1
            spans[number] = []
        else:
            spans[number].append(token)
    assert list(spans) == list(range(first, first - len(spans), -1))
    assert [token for token in inputs if token in spans] == list(spans)  # in the same order
    return [t for token in inputs for t in spans.get(token, [token])]


def test_corrupt_by_hand():
    tokens = tf.constant([11, 12, 13, 14, 15, 16], tf.int32)
    noise = tf.constant([False, True, True, False, False, True])
    actual = denoising.corrupt(tokens, noise, FIRST)
    assert actual["inputs"].numpy().tolist() == [11, 999, 14, 15, 998]
    assert actual["targets"].numpy().tolist() == [999, 12, 13, 998, 16]


@given(noise=st.lists(st.booleans(), min_size=1, max_size=40))
@settings(deadline=None, max_examples=20)
def test_corrupt_is_that_of_the_embedded_backbones_mixture(noise):
    tokens = list(range(10, 10 + len(noise)))
    actual = denoising.corrupt(tf.constant(tokens), tf.constant(noise), FIRST)
    source, target = mixture.span_corruption(tokens, np.array(noise), FIRST)
    assert actual["inputs"].numpy().tolist() == source
    assert actual["targets"].numpy().tolist() == target
    assert restored(source, target) == tokens


@given(length=st.integers(1, 300), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=20)
def test_noise_mask(length, seed):
    noise, spans = denoising.counts(length)
    mask = denoising.noise_mask(length, noise, spans, tf.constant([seed, 1])).numpy()
    assert mask.shape == (length,)
    assert mask.sum() == noise
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    assert starts.sum() == spans
    assert length == 1 or not mask[0]


# 15 % of 100 tokens are 15, in 5 spans of 3; 15 % of 568 are 85 (85.2), in 28 spans (28.3).
@pytest.mark.parametrize(
    ("length", "expected"), [(1, (1, 1)), (2, (1, 1)), (100, (15, 5)), (568, (85, 28))]
)
def test_counts(length, expected):
    assert denoising.counts(length) == expected


def test_piece_length_fills_the_inputs():
    # T5's pre-training: 568 tokens become 512 - 85 of which left, 28 sentinels came, and the end.
    assert denoising.piece_length(512) == 568
    assert 568 - 85 + 28 + 1 == 512


def corpus(tmp_path, texts, name="c4-train.00000.jsonl"):
    (tmp_path / "c4").mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts)
    path = tmp_path / "c4" / name
    with lzma.open(path, "wt") if path.suffix == ".xz" else path.open("w") as file:
        file.write(lines)


def tokens_of(name, lengths, split="train", **options):
    task = seqio.TaskRegistry.get(name)
    return [
        {key: example[key].tolist() for key in ("inputs", "targets")}
        for example in task.get_dataset(lengths, split=split, **options).as_numpy_iterator()
    ]


TEXTS = [f"This is text number {i}, about {'rain ' * (i % 7)}and sun." for i in range(30)]


@pytest.fixture
def local(tmp_path, vocabulary):
    corpus(tmp_path, TEXTS)
    corpus(tmp_path, TEXTS[:9], "c4-validation.00000.jsonl.xz")
    names = register(c4.TASKS, vocabulary, tmp_path)
    assert names == ("c4_v220_span_corruption", "c4_v220_prefix_lm")
    return tmp_path


def test_span_corruption_of_local_texts(local, vocabulary):
    lengths = {"inputs": 64, "targets": 32}
    actual = tokens_of("c4_v220_span_corruption", lengths, shuffle=False, seed=3)
    assert all(e["inputs"].pop() == e["targets"].pop() == vocabulary.eos_id for e in actual)
    first = vocabulary.vocab_size - 1
    pieces = [restored(e["inputs"], e["targets"], first) for e in actual]
    everything = [token for text in TEXTS for token in vocabulary.encode(text)]
    assert [token for piece in pieces for token in piece] == everything
    assert all(len(e["inputs"]) == 63 for e in actual[:-1])
    lost = sum(token <= first - 100 for e in actual for token in e["targets"])
    assert lost / len(everything) == pytest.approx(0.15, abs=0.01)


def test_prefix_lm_of_local_texts(local, vocabulary):
    actual = tokens_of("c4_v220_prefix_lm", {"inputs": 64, "targets": 64}, shuffle=False, seed=3)
    assert len(actual) == len(TEXTS)  # each is shorter than 64
    places = set()
    for text, example in zip(TEXTS, actual, strict=True):
        assert example["inputs"].pop() == example["targets"].pop() == vocabulary.eos_id
        assert example["inputs"] + example["targets"] == vocabulary.encode(text)
        assert example["inputs"]
        assert example["targets"]
        places.add(len(example["inputs"]))
    assert len(places) > 5


def test_prefix_lm_cuts_such_that_targets_fit(local, vocabulary):
    actual = tokens_of("c4_v220_prefix_lm", {"inputs": 12, "targets": 4}, shuffle=False, seed=3)
    tokens = [t for e in actual for t in (*e["inputs"][:-1], *e["targets"][:-1])]
    texts = [vocabulary.encode(text) for text in TEXTS]
    # Of the last piece of a text one token may be left, which is nothing to cut in two.
    kept = [ids[: -1 if len(ids) % 11 == 1 else None] for ids in texts]
    assert tokens == [token for ids in kept for token in ids]
    assert all(len(e["inputs"]) <= 12 and len(e["targets"]) <= 4 for e in actual)


def test_a_seed_gives_the_same_examples_and_each_epoch_others(local):
    lengths = {"inputs": 32, "targets": 16}

    def epochs(seed):
        examples = tokens_of(
            "c4_v220_span_corruption", lengths, shuffle=False, seed=seed, num_epochs=2
        )
        half = len(examples) // 2
        return examples[:half], examples[half:]

    first, second = epochs(1)
    assert first != second
    assert epochs(1) == (first, second)
    assert epochs(2)[0] != first


def test_batches_for_training(local, vocabulary, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 8)
    data = TaskData("c4_v220_span_corruption", {"inputs": 64, "targets": 32}, 2)
    assert data.splits == ("train", "validation")
    batch = next(data.train_batches(0))
    assert batch["encoder_input_tokens"].shape == (2, 64)
    assert (batch["decoder_target_tokens"][:, 0] == vocabulary.vocab_size - 1).all()


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"inputs": 512, "targets": 113}, "needs targets of 114 or more"),
        ({"inputs": 2048, "targets": 2048}, "needs 114 sentinels .* the vocabulary has 100"),
    ],
)
def test_lengths_that_span_corruption_cannot_have(local, lengths, message):
    with pytest.raises(UserError, match=message):
        tokens_of("c4_v220_span_corruption", lengths)


def test_lines_without_a_text(local, vocabulary):
    (local / "c4" / "c4-train.00001.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    register(c4.TASKS, vocabulary, local)
    with pytest.raises(
        tf.errors.OpError, match=r'00001\.jsonl, line 2: expected a JSON object with a "'
    ):
        tokens_of("c4_v220_prefix_lm", {"inputs": 8, "targets": 8}, shuffle=False)


def test_real_corpus(shared_data, vocabulary, tmp_path):
    (tmp_path / "c4").symlink_to(shared_data / "corpus")
    register(c4.TASKS, vocabulary, tmp_path)
    task = seqio.TaskRegistry.get("c4_v220_span_corruption")
    assert tuple(task.splits) == ("train",)
    dataset = task.get_dataset({"inputs": 128, "targets": 64}, split="train", shuffle=False)
    first = vocabulary.vocab_size - 1
    for example in dataset.take(5).as_numpy_iterator():
        inputs, targets = example["inputs"].tolist(), example["targets"].tolist()
        assert len(inputs) == 128
        piece = restored(inputs[:-1], targets[:-1], first)
        assert len(piece) == denoising.piece_length(128)
        assert not set(range(first - 99, first + 1)) & set(piece)
