"""The caches of tokenised examples: this package's own, and SeqIO's offline cache."""

import dataclasses
import functools
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
from etils import epath

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.data.batches import Batching, TaskData
from prompt_tuning.data.batching import token_cache, tokens
from prompt_tuning.data.catalogue import glue
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.records import BadRows

NAME = "test_token_cache_files"
LENGTHS = {"inputs": 12, "targets": 6}


@pytest.fixture
def rows_file(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "line {i}", "label": {i % 2}}}\n' for i in range(9)))
    return path


def register(path: Path, labels=("no", "yes"), vocabulary=None) -> seqio.Task:
    files = TextFiles(train=str(path), labels=labels)
    vocabulary = vocabulary or tasks.vocabulary(embedded.vocabulary())
    return tasks.register_files(NAME, files, vocabulary)


def key(task: seqio.Task, folder="cache", split="train", lengths=LENGTHS) -> Path | None:
    return token_cache.path(str(folder), task, split, lengths)


def read(task: seqio.Task, folder: Path) -> list:
    actual = tokens.in_memory(task, "train", LENGTHS, use_cached=False, cache_dir=str(folder))
    return [(source.tolist(), target.tolist()) for source, target in actual]


@pytest.fixture
def counted(monkeypatch) -> list:
    """A list that grows whenever examples are tokenised."""
    asked = []
    real = tokens.chunks
    monkeypatch.setattr(tokens, "chunks", lambda *args: asked.append(1) or real(*args))
    return asked


@pytest.mark.parametrize("batching", ["padded", "bucketed", "packed"])
def test_batches_are_the_same_with_and_without(rows_file, tmp_path, counted, batching):
    register(rows_file)

    def batches(cache_dir: str) -> list:
        data = TaskData(NAME, LENGTHS, 4, batching=Batching(batching), cache_dir=cache_dir)
        return list(itertools.islice(data.train_batches(3), 6))

    folder = tmp_path / "cache"
    without, making, using = batches(""), batches(str(folder)), batches(str(folder))
    assert len(counted) == 2 and len(list(folder.iterdir())) == 1
    for others in (making, using):
        for a, b in zip(without, others, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                assert a[name].dtype == b[name].dtype
                np.testing.assert_array_equal(a[name], b[name])


def test_what_it_holds_is_what_was_written(rows_file, tmp_path):
    vocabulary = tasks.vocabulary(embedded.vocabulary())
    task = register(rows_file)
    expected = [
        ([*vocabulary.encode(f"line {i}"), 1], [*vocabulary.encode(("no", "yes")[i % 2]), 1])
        for i in range(9)
    ]
    assert read(task, tmp_path / "cache") == read(task, tmp_path / "cache") == expected


def test_key_changes_with_all_that_decides_the_tokens(rows_file, tmp_path, monkeypatch):
    first = key(register(rows_file))
    keys = [first]
    keys.append(key(register(rows_file, labels=("yes", "no"))))
    keys.append(key(register(rows_file, vocabulary=seqio.ByteVocabulary())))
    task = register(rows_file)
    keys.append(key(task, split="validation"))
    keys.append(key(task, lengths=LENGTHS | {"inputs": 11}))
    few = tasks.vocabulary(embedded.vocabulary(), extra_ids=1)
    keys.append(key(register(rows_file, vocabulary=few)))
    other = tmp_path / "other.jsonl"
    other.write_bytes(rows_file.read_bytes())
    keys.append(key(register(other)))
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_code", lambda: "another version")
        keys.append(key(register(rows_file)))
    status = rows_file.stat()
    os.utime(rows_file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    keys.append(key(register(rows_file)))
    rows_file.write_text(rows_file.read_text() + '{"text": "more", "label": 0}\n')
    os.utime(rows_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    keys.append(key(register(rows_file)))
    text = rows_file.read_text()
    rows_file.write_text(text.translate(str.maketrans("aeiou", "eioua")))  # of the same size
    os.utime(rows_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    keys.append(key(register(rows_file)))
    with monkeypatch.context() as patch:  # of a large file, the ends
        patch.setattr(token_cache, "_READ", 8)
        ends = [key(register(rows_file))]
        for changed in (text[:-9] + text[-9:].upper(), text[:9].upper() + text[9:], text):
            rows_file.write_text(changed)
            os.utime(rows_file, ns=(status.st_atime_ns, status.st_mtime_ns))
            ends.append(token_cache._stat(str(rows_file))[3])
    assert len(set(ends)) == 4
    assert len(set(keys)) == len(keys) == 11


def test_key_stays_the_same(rows_file, tmp_path):
    task = register(rows_file)
    before = key(task)
    read(task, tmp_path / "cache")
    assert key(task) == before
    assert key(register(rows_file)) == before
    copied = tmp_path / "vocabulary.model"  # the vocabulary counts by what is in it
    copied.write_bytes(Path(embedded.vocabulary()).read_bytes())
    assert key(register(rows_file, vocabulary=tasks.vocabulary(copied))) == before


def test_changed_rows_are_read_again(rows_file, tmp_path):
    folder = tmp_path / "cache"
    assert len(read(register(rows_file), folder)) == 9
    rows_file.write_text('{"text": "one row", "label": 0}\n')
    assert len(read(register(rows_file), folder)) == 1


@pytest.fixture(params=["tfds", "folder"])
def benchmark_keys(request, tmp_path):
    """Registers GLUE and SuperGLUE anew, over TFDS or over files, and gives the tasks' keys."""
    vocabulary = tasks.vocabulary(embedded.vocabulary())
    for benchmark in glue.BENCHMARKS:
        if benchmark.local:
            (tmp_path / benchmark.local.folder).mkdir(exist_ok=True)
            (tmp_path / benchmark.local.folder / "train.jsonl").write_text("{}")

    def keys() -> dict[str, Path | None]:
        source = "tfds" if request.param == "tfds" else tmp_path
        names = set(glue.register_benchmarks(vocabulary, source))
        actual = map(seqio.get_mixture_or_task, names & set(seqio.TaskRegistry.names()))
        return {task.name: key(task) for task in actual if "train" in task.splits}

    return keys


def test_every_benchmark_can_be_cached(benchmark_keys):
    keys = benchmark_keys()
    assert len(keys) > 10 and None not in keys.values()
    assert benchmark_keys() == keys


def test_files_beside_the_rows_count_too(benchmark_keys, tmp_path):
    name = "taskless_super_glue_multirc_v102_examples"
    before = benchmark_keys()
    (tmp_path / "multirc" / "passages_train.jsonl").write_text("{}")
    after = benchmark_keys()
    of_files = isinstance(seqio.get_mixture_or_task(name).source, MemorySource)
    changed = {task for task in before if before[task] != after[task]}
    assert changed == ({name} if of_files else set())


def test_rows_that_are_skipped_are_read_to_be_counted(rows_file):
    rows_file.write_text(rows_file.read_text() + "no row\n")
    files = TextFiles(train=str(rows_file), labels=("no", "yes"), bad_rows=BadRows(3))
    vocabulary = tasks.vocabulary(embedded.vocabulary())
    assert key(tasks.register_files(NAME, files, vocabulary)) is None


def test_a_folder_counts_by_its_files(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data.arrow").write_text("a")
    before = key(register(tmp_path / "saved"))
    assert key(register(tmp_path / "saved")) == before
    (tmp_path / "saved" / "data.arrow").write_text("ab")
    assert key(register(tmp_path / "saved")) != before


def test_what_cannot_be_told_from_outside_is_not_cached(rows_file, tmp_path, counted):
    vocabulary = tasks.vocabulary(embedded.vocabulary())
    splits = {"train": lambda: [Row("a", "b")]}
    task = tasks.register("test_token_cache_lambda", splits, vocabulary)
    assert key(task) is None
    assert len(read(task, tmp_path / "cache")) == 1
    assert not (tmp_path / "cache").exists()
    files = TextFiles(train=str(rows_file))

    @dataclasses.dataclass(frozen=True)
    class Mine:
        rows = functools.partial(files.rows, "train")

        def __call__(self):
            return self.rows()

    assert key(tasks.register("test_token_cache_mine", {"train": Mine()}, vocabulary)) is None
    assert key(register(rows_file), folder="") is None


DAMAGE = {
    "cut": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another file": lambda content: b"nothing of ours",
    "longer": lambda content: content + b"\0",
    **{
        f"bit {part}": lambda content, part=part: _flipped(content, len(content) * part // 10)
        for part in range(10)
    },
}


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_told_and_not_used(tmp_path, caplog, damage):
    file = tmp_path / "a.tokens"
    token_cache.save(file, {"ids": np.arange(3)})
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with caplog.at_level("WARNING", logger="absl"):
        assert token_cache.load(file) is None
    [record] = caplog.records
    assert record.getMessage() == f"CACHE_DIR: {file} is damaged: tokenising again"


def test_a_damaged_file_is_made_again(rows_file, tmp_path, counted):
    task = register(rows_file)
    whole = read(task, tmp_path / "cache")
    [file] = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert read(task, tmp_path / "cache") == whole
    assert file.read_bytes() == content
    assert len(counted) == 2


def test_a_folder_that_cannot_be_written(rows_file, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level("WARNING", logger="absl"):
        assert len(read(register(rows_file), tmp_path / "file" / "cache")) == 9
    assert any("nothing is cached" in record.getMessage() for record in caplog.records)


def test_processes_that_write_at_a_time(tmp_path, monkeypatch):
    path, arrays = tmp_path / "a.tokens", {"ids": np.arange(300)}
    real = type(epath.Path(path)).write_bytes

    def in_the_middle(file, content):
        real(file, content[:100])
        assert token_cache.load(path) is None
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            other.setattr(type(file), "write_bytes", real)
            token_cache.save(path, arrays)  # a second process comes first
        np.testing.assert_array_equal(token_cache.load(path)["ids"], arrays["ids"])
        real(file, content)

    monkeypatch.setattr(type(epath.Path(path)), "write_bytes", in_the_middle)
    token_cache.save(path, arrays)
    np.testing.assert_array_equal(token_cache.load(path)["ids"], arrays["ids"])
    assert list(tmp_path.iterdir()) == [path]


def test_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert token_cache.default_folder() == "/cache/prompt_tuning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert token_cache.default_folder() == "~/.cache/prompt_tuning"


def write_offline_cache(folder: Path, examples: list[tuple[list[int], list[int]]]) -> None:
    """A split as `seqio_cache_tasks` writes it."""
    folder.mkdir(parents=True)
    ids = {"shape": [None], "dtype": "int32"}
    info = {"num_shards": 1, "features": {"inputs": ids, "targets": ids}}
    (folder / "info.train.json").write_text(json.dumps(info | {"seqio_version": "0.0.20"}))
    (folder / "stats.train.json").write_text(json.dumps({"examples": len(examples)}))
    with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
        for example in examples:
            feature = {
                name: tf.train.Feature(int64_list=tf.train.Int64List(value=values))
                for name, values in zip(("inputs", "targets"), example, strict=True)
            }
            record = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(record.SerializeToString())
    (folder / "COMPLETED").write_text("")


def test_offline_cache_of_seqio(tmp_path, monkeypatch):
    """USE_CACHED_TASKS reads it, and neither the source nor what comes before the cache."""
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [])

    def unread(dataset):
        raise AssertionError("preprocessed again")

    examples = [([5, 6, 7], [8]), ([9] * 20, [10]), ([11], [12, 13])]
    write_offline_cache(tmp_path / "test_token_cache_offline", examples)
    seqio.TaskRegistry.add(
        "test_token_cache_offline",
        seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: None, splits=["train"]),
        preprocessors=[
            unread,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=tasks.features(tasks.vocabulary(embedded.vocabulary())),
    )
    seqio.add_global_cache_dirs([str(tmp_path)])
    data = TaskData("test_token_cache_offline", LENGTHS, 3, use_cached=True)
    [first, second] = itertools.islice(data.train_batches(0), 2)
    for batch in (first, second):
        rows = zip(batch["encoder_input_tokens"], batch["decoder_target_tokens"], strict=True)
        actual = sorted(([*a[a > 0].tolist()], [*b[b > 0].tolist()]) for a, b in rows)
        assert actual == [([5, 6, 7, 1], [8, 1]), ([9] * 11 + [1], [10, 1]), ([11, 1], [12, 13, 1])]
