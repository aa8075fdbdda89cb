"""TensorFlow Datasets that cannot be had."""

import socket
import urllib.request

import pytest
import seqio

from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.catalogue import glue
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.data.variants import few_shot
from prompt_tuning.data.variants.few_shot import FewShot
from prompt_tuning.errors import UserError

TASK = "taskless_super_glue_rte_v102_examples"


@pytest.fixture
def task(tmp_path, monkeypatch, vocabulary) -> seqio.Task:
    """A task over an empty folder of TensorFlow Datasets."""
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    glue.register_benchmarks(vocabulary)
    return seqio.get_mixture_or_task(TASK)


@pytest.fixture
def offline(monkeypatch) -> list:
    asked = []

    def refused(address, timeout):
        asked.append((address, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", refused)
    return asked


def test_without_a_network(task, offline, tmp_path):
    data = TaskData(TASK, {"inputs": 8, "targets": 4}, 2)
    message = (
        rf"{TASK}: super_glue/rte:1.0.2 of TensorFlow Datasets is not prepared in {tmp_path}, and "
        r"the network cannot be reached \(timed out\); give --tfds_data_dir, or .*BENCHMARKS_DIR"
    )
    with pytest.raises(UserError, match=message):
        data.train_batches(0)
    with pytest.raises(UserError, match=message):
        data.eval_set("validation")
    assert {timeout for _, timeout in offline} == {5}


@pytest.mark.parametrize("folder", ["super_glue/rte/1.0.2", "super_glue/rte/default/1.0.2"])
def test_prepared_data_need_no_network(task, offline, tmp_path, folder):
    place = tmp_path / folder
    place.mkdir(parents=True)
    with pytest.raises(UserError):  # begun, but not finished
        check_prepared(task, "train")
    offline.clear()
    (place / "dataset_info.json").write_text("{}")
    check_prepared(task, "train")
    assert offline == []


def test_seqios_cache_needs_no_network(task, offline):
    check_prepared(task, "train", use_cached=True)
    assert offline == []


def test_a_few_of_what_is_not_there(task, offline):
    name = few_shot.register(TASK, FewShot(2), {"inputs": 8, "targets": 4}, use_cached=False)
    with pytest.raises(UserError, match=r"rte:1\.0\.2 of TensorFlow Datasets is not prepared"):
        next(TaskData(name, {"inputs": 8, "targets": 4}, 2).train_batches(0))


def test_another_version_is_not_the_data(task, offline, tmp_path):
    place = tmp_path / "super_glue" / "rte" / "1.0.3"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="not prepared"):
        check_prepared(task, "train")


def test_with_a_network(task, monkeypatch):
    class Answer:
        def close(self):
            pass

    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: Answer())
    check_prepared(task, "train")


def test_other_sources_are_not_asked_about(offline):
    check_prepared(seqio.get_mixture_or_task("demo_reviews"), "train")
    assert offline == []
