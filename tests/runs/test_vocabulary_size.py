"""Vocabularies and token ids that the backbone's embedding has no rows for, in every way in."""

import numpy as np
import pytest
import seqio

from prompt_tuning import embedded, serving
from prompt_tuning.checkpoint import backbone
from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.variants import sentinel
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import generate, rank_labels
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods import Method, ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs import loading
from prompt_tuning.serving import model as serving_model
from prompt_tuning.testing import (
    Numbers,
    clean_registries,
    random_batch,
    random_leaves,
    tiny_config,
    tiny_model,
)
from prompt_tuning.trainer import fit
from prompt_tuning.transformer.vocabulary import Bytes, SentencePiece, check_size

PIECES = SentencePiece(embedded.vocabulary()).size


def data(kind: str) -> TaskData:
    with clean_registries():
        tasks.register_demo_tasks(tasks.vocabulary(embedded.vocabulary()))
        if kind == "mixture":
            tasks.add_mixture("demo_mixture", {"demo_topics": 1, "demo_reviews": 1})
        name = {
            "task": lambda: "demo_reviews",
            "mixture": lambda: "demo_mixture",
            "sentinel": lambda: sentinel.register("demo_reviews"),
        }[kind]()
        return TaskData(name, {"inputs": 8, "targets": 8}, 2)


@pytest.mark.parametrize(
    ("kind", "rows", "pieces"),
    [
        ("task", 64, PIECES),
        ("task", PIECES - 1, PIECES),
        ("mixture", 64, PIECES),
        ("sentinel", PIECES, PIECES + 100),
        ("sentinel", PIECES + 99, PIECES + 100),
    ],
)
def test_a_vocabulary_larger_than_the_embedding(kind, rows, pieces, tmp_path):
    """`train`, `eval`, `infer` and `demo` load their model by `loading.load`."""
    message = f"has {pieces:,} pieces, but the backbone's embedding has {rows:,} rows"
    config, file = tiny_config(vocab_size=rows), str(tmp_path / "tiny.safetensors")
    shapes = ParamSplit.of(config, ModelTuning()).shapes
    backbone.save(tmp_path / "tiny.safetensors", random_leaves(shapes), "float32")
    layout = tiny_model().layout
    with pytest.raises(UserError, match=message):
        loading.load(config, Method(), data(kind), layout, checkpoint=file, seed=0)


def test_a_vocabulary_as_large_as_the_embedding():
    assert data("task").vocabulary_size == data("mixture").vocabulary_size == PIECES
    assert data("sentinel").vocabulary_size == PIECES + 100


@pytest.mark.parametrize(
    ("pieces", "rows", "warns"),
    [
        (32_000, 32_128, False),
        (250_100, 250_112, False),
        (Bytes.size, 384, False),
        (0, 250_112, False),
        (32_000, 250_112, True),
        (PIECES, 32_128, True),
        (Bytes.size, PIECES, True),
    ],
)
def test_a_vocabulary_much_smaller_than_the_embedding(recwarn, pieces, rows, warns):
    check_size(pieces, rows)
    assert len(recwarn) == warns
    assert all("far fewer than the" in str(warning.message) for warning in recwarn)


def test_bytes_count_in_every_way_in(monkeypatch):
    sizes = []
    monkeypatch.setattr(loading, "check_size", lambda pieces, rows: sizes.append(pieces))
    monkeypatch.setattr(serving_model, "check_size", lambda pieces, rows: sizes.append(pieces))
    tuned = tiny_model()
    serving.Model(tuned.model.config, tuned.params, Bytes(), tuned.layout)
    with clean_registries():
        tasks.register_demo_tasks(seqio.ByteVocabulary())
        data = TaskData("demo_reviews", {"inputs": 8, "targets": 16}, 2)
    assert [*sizes, data.vocabulary_size] == [Bytes.size] * 2
    assert max(Bytes().encode("\U0010ffff")) < Bytes.size


def test_a_served_vocabulary_larger_than_the_embedding():
    tuned = tiny_model()
    vocabulary = SentencePiece(embedded.vocabulary())
    with pytest.raises(UserError, match=f"has {PIECES:,} pieces, .* has 64 rows"):
        serving.Model(tuned.model.config, tuned.params, vocabulary, tuned.layout)


@pytest.mark.parametrize("largest", [64, 65, 32_099])
def test_ids_beyond_the_embedding(largest):
    tuned = tiny_model()
    message = f"token id {largest:,}, but the backbone's embedding has 64 rows"
    model = serving.Model(tuned.model.config, tuned.params, Numbers(), tuned.layout)
    model.add_task("text", None)
    model.add_task("labels", None, labels=["5", str(largest)])
    for call in (model, model.generate, model.embed):
        with pytest.raises(UserError, match=message):
            call(["4", f"5 {largest}"], "text")
    with pytest.raises(UserError, match=message):
        model.classify(["4"], "labels")

    ids = np.array([[4, 1], [largest, 1]], np.int32)
    good = ids[:1]
    for predict, inputs, labels in (
        (generate, ids, good[:0]),
        (rank_labels, ids, good),
        (rank_labels, good, ids),
    ):
        words = [str(row) for row in labels]
        texts = ["a"] * len(inputs)
        eval_set = EvalSet("mine", "test", texts, texts, inputs, words, labels, 2, (), str)
        with pytest.raises(UserError, match=message):
            predict(tuned, eval_set, 1)


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("encoder_input_tokens", 64, "token id 64, but the backbone's embedding has 64 rows"),
        ("decoder_target_tokens", 32_099, "token id 32,099, but .* has 64 rows"),
        ("decoder_input_tokens", 65, "token id 65, but .* has 64 rows"),
        ("encoder_input_tokens", -1, "token id -1; padding is 0"),
        ("decoder_target_tokens", -100, "token id -100; padding is 0"),
    ],
)
def test_batches_of_ones_own_with_other_ids(tmp_path, name, token, message):
    """Nothing is compiled, since a batch is checked before its step."""
    good = random_batch(batch=1)
    batch = {**good, name: np.array(good[name])}
    batch[name][0, 1] = token
    with pytest.raises(UserError, match=message):
        fit(tiny_model(), model_dir=tmp_path, batches=lambda start: iter([batch]), total_steps=1)
