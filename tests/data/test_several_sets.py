"""Data sets that are opened one after another in one process; each keeps its own."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.data.files import TextFiles, of_folder
from prompt_tuning.data.source import task_data
from prompt_tuning.errors import UserError
from prompt_tuning.testing import clean_registries
from prompt_tuning.training import run_settings

LENGTHS = {"inputs": 16, "targets": 8}
RTE = "taskless_super_glue_rte_v102_examples"


def write(folder, word, count=6):
    folder.mkdir(exist_ok=True)
    (folder / "rte").mkdir(exist_ok=True)
    for split in ("train", "validation"):
        rows = [{"text": f"{word} {i}", "label": f"{word}{i % 2}"} for i in range(count)]
        pairs = [
            {"premise": f"{word} {i}", "hypothesis": word, "label": i % 2} for i in range(count)
        ]
        for name, lines in ((f"{split}.jsonl", rows), (f"rte/{split}.jsonl", pairs)):
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def options(kind: str, folder, word: str) -> dict:
    labels = (f"{word}0", f"{word}1")
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    files = {"files": TextFiles(**paths, labels=labels)}
    mine = {"mine": lambda: of_folder(".", str(folder), labels=labels)}
    return {
        "files": files,
        "few-shot": files | {"few_shot": 2},
        "sentinel": files | {"sentinel_targets": True},
        "bucketed": files | {"batching": "bucketed"},
        "file task": {"task": "mine", "file_tasks": mine},
        "mixture": {"task": ["mine", "demo_topics"], "file_tasks": mine},
        "few-shot mixture": {"task": ["mine", "demo_topics"], "file_tasks": mine, "few_shot": 2},
        "text task": {"task": RTE, "benchmarks_dir": str(folder)},
        "few-shot text task": {"task": RTE, "benchmarks_dir": str(folder), "few_shot": 2},
    }[kind]


def opened(vocabulary, **changes):
    defaults = {"task": None, "files": TextFiles(), "lengths": LENGTHS, "batch_size": 2}
    return task_data(**defaults | changes, vocabulary=vocabulary)


def seen(data):
    """All that a run reads of its data."""
    batches = itertools.islice(data.train_batches(0), 4)
    sets = [
        (s.task, s.inputs, s.targets, s.labels, s.encoder_input_tokens.tolist())
        for s in data.eval_sets("validation")
    ]
    arrays = [{name: batch[name].tolist() for name in sorted(batch)} for batch in batches]
    return arrays, sets, data.labels, data.tasks, data.splits, data.encode("one two")


KINDS = [
    "files",
    "few-shot",
    pytest.param("sentinel", marks=pytest.mark.slow),
    "bucketed",
    "file task",
    pytest.param("mixture", marks=pytest.mark.slow),
    pytest.param("few-shot mixture", marks=pytest.mark.slow),
    "text task",
    pytest.param("few-shot text task", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_keeps_its_own(kind, vocabulary, tmp_path):
    one, two = (write(tmp_path / word, word) for word in ("alpha", "beta"))
    with clean_registries():
        expected = seen(opened(vocabulary, **options(kind, one, "alpha")))
    first = opened(vocabulary, **options(kind, one, "alpha"))
    running = first.train_batches(0)
    next(running)
    other = tasks.vocabulary(embedded.vocabulary(), extra_ids=7)
    for later in (vocabulary, other):
        second = opened(later, **options(kind, two, "beta"))
        assert seen(second) != expected
    second_batch = {name: ids.tolist() for name, ids in next(running).items()}
    assert second_batch == {name: expected[0][1][name] for name in second_batch}
    assert seen(first) == expected


def test_a_run_does_not_resume_with_another_vocabulary_of_the_same_size(vocabulary, tmp_path):
    """Whose ids are other pieces, though the examples of the run have none of them."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(Path(embedded.vocabulary()).read_bytes())
    one, other = model.pieces[7_001], model.pieces[7_002]
    one.piece, other.piece = other.piece, one.piece
    (tmp_path / "other.model").write_bytes(model.SerializeToString())
    own = options("files", write(tmp_path / "one", "one"), "one")
    with clean_registries():
        saved, same, current = (
            opened(words, **own).settings
            for words in (vocabulary, vocabulary, tasks.vocabulary(tmp_path / "other.model"))
        )
    assert run_settings.changes(saved, same) == []
    [listed] = run_settings.changes(saved, current)
    assert re.fullmatch(r"VOCABULARY_FILE = \w{16}, now \w{16}", listed)


def test_a_tasks_name_that_is_registered_again(vocabulary):
    def register(word):
        rows = {split: lambda: [tasks.Row(word, word)] for split in ("train", "validation")}
        tasks.register("test_several_sets", rows, vocabulary, labels=[word])

    register("yes")
    first = opened(vocabulary, task="test_several_sets")
    register("no")
    second = opened(vocabulary, task="test_several_sets")
    for data, word in ((first, "yes"), (second, "no")):
        assert data.labels == (word,)
        assert data.eval_set("validation").targets == [word]
        target = next(data.train_batches(0))["decoder_target_tokens"][0]
        ids = [*vocabulary.encode(word), vocabulary.eos_id]
        np.testing.assert_array_equal(target[: len(ids)], ids)


@pytest.mark.parametrize("kind", ["files", "few-shot", "sentinel", "file task", "text task"])
def test_a_file_that_is_edited_meanwhile_is_an_error(kind, vocabulary, tmp_path):
    """Else one object would train on the old rows and evaluate on the new ones."""
    with clean_registries():
        data = opened(vocabulary, **options(kind, write(tmp_path, "one"), "one"))
        next(data.train_batches(0))
        data.eval_sets("validation")
        for path in (tmp_path / "validation.jsonl", tmp_path / "rte" / "validation.jsonl"):
            path.write_text(path.read_text().replace("one 1", "two 1"))
        with pytest.raises(
            UserError, match=r"'validation': its examples have changed .* open the data"
        ):
            data.eval_sets("validation")
        opened(vocabulary, **options(kind, tmp_path, "one")).eval_sets("validation")


def test_a_folder_without_the_task_of_an_earlier_one(vocabulary, tmp_path):
    """Its rows are not those of the earlier folder."""
    sst2 = "sentence\tlabel\nfine film\t1\n"
    for folder, name, text in (("one", "SST-2", sst2), ("two", "CoLA", "x\t1\t*\tA cat\n")):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / "dev.tsv").write_text(text)
    own = {"files": TextFiles(), "task": "taskless_glue_sst2_v200_examples"}
    own |= {"vocabulary": vocabulary, "lengths": {"inputs": 16, "targets": 4}, "batch_size": 2}
    with clean_registries():
        first = task_data(benchmarks_dir=str(tmp_path / "one"), **own)
        with pytest.raises(UserError, match="taskless_glue_sst2_v200_examples"):
            task_data(benchmarks_dir=str(tmp_path / "two"), **own)
        assert len(first.eval_set("validation").inputs) == 1
