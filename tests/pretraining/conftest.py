"""A corpus, labelled sets and a teacher's table in miniature, written for these tests."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from prompt_tuning import embedded
from prompt_tuning.pretraining.table import FORMAT, MANIFEST, file_digest

SUBJECTS = ("The baker", "A sailor", "My neighbour", "The young teacher", "An old farmer")
VERBS = ("carried", "painted", "repaired", "collected", "described")
OBJECTS = ("seven baskets", "the wooden bridge", "a letter from Lisbon", "warm bread", "her garden")
PLACES = ("near the river.", "in the village.", "before the winter.", "for the whole town.")
WIDTH = 16


def sentences(rng: np.random.Generator, count: int) -> str:
    pick = lambda words: words[int(rng.integers(len(words)))]  # noqa: E731
    named = lambda: "".join(pick(("ba", "lo", "mi", "ter", "sen", "gu", "ra")) for _ in range(4))  # noqa: E731
    return " ".join(
        f"{pick(SUBJECTS)} {pick(VERBS)} {pick(OBJECTS)} of {named()} {pick(PLACES)}"
        for _ in range(count)
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rows = [
        {"text": sentences(rng, 12), "source": source}
        for source in ("books", "wikipedia_bio", "medquad", "imdb_unsup") * 10
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "shard.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(1)
    for name, labels in (
        ("opinions", ["negative", "positive"]),
        ("intents", ["pay_bill", "book_table", "weather"]),
    ):
        (folder / name).mkdir()
        rows = [{"text": sentences(rng, 2), "label": i % len(labels)} for i in range(30)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "train.jsonl").write_text(lines, encoding="utf-8")
        about = {"name": name, "labels": labels, "splits": {"train": {"file": "train.jsonl"}}}
        (folder / name / "dataset_info.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def write_table(folder: Path) -> Path:
    """A table whose teacher is a random one."""
    rng = np.random.default_rng(2)
    pieces = sentencepiece.SentencePieceProcessor(model_file=embedded.vocabulary())
    words = ["bread", "river", "bridge", "winter", "garden", "music", "teacher", "city", "north"]
    options = [*words, "summer", "horse", "doctor", "old bridge", "warm winter", "green garden"]
    texts = [f"{sentences(rng, 1)} {i}" for i in range(200)]
    pairs = [
        {"first": sentences(rng, 1), "second": sentences(rng, 1), "similarity": float(i % 3 > 0)}
        for i in range(300)
    ]
    lines = {
        "windows": [{"text": text, "source": "books"} for text in texts],
        "pairs": pairs,
    }
    for name, rows in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")
    counts = {
        "windows": len(texts),
        "options": len(options),
        "pieces": pieces.vocab_size(),
    }
    for name, count in counts.items():
        vectors = rng.normal(size=(count, WIDTH))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(folder / f"{name}.npy", vectors.astype(np.float16))
    about = {
        "format": FORMAT,
        "teacher": "random",
        "vocabulary": file_digest(embedded.vocabulary()),
        "width": WIDTH,
        "rows": counts | {"pairs": len(pairs)},
        "held_back": [],
    }
    (folder / MANIFEST).write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("table"))
