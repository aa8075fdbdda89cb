"""The folder of tasks: names touch nothing outside, and a change is whole or does not happen."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.server.store import Store, checked_name

HOSTILE = [
    *("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "%2e%2e", "gs://x/y", "~root"),
    *("a" * 65, "-a", "_a", "a b", "a\n", "\u0430dmin", "a\u200b", "\ud800", "con:", "a@b", "é"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused(name, tmp_path):
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match="a name is up to 64 letters"):
        store.put(name, b"content")
    assert store.digests == {} and [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "0" * 64])
def test_a_name(name):
    assert checked_name(name) == name


def test_files_are_kept_while_a_task_has_them(tmp_path):
    store = Store(tmp_path)
    store.put("a", b"one")
    store.put("b", b"one")
    store.put("c", b"two")
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    store.delete("a")
    assert Store(tmp_path).read(store.digests["b"]) == b"one"
    store.delete("b")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and set(store.digests) == {"c"}


@pytest.mark.parametrize("content", ["[", "[1]", '{"a": 1}', '{"../a": "' + "0" * 64 + '"}'])
def test_a_damaged_manifest_and_file_are_told(content, tmp_path):
    store = Store(tmp_path)
    store.put("a", b"one")
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(b"other")
    with pytest.raises(CheckpointError, match="is damaged"):
        store.read(store.digests["a"])
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a manifest"):
        _ = store.digests


WRITER = """
import sys
from prompt_tuning.server.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
for i in range(10**9):
    store.put("task", bytes([i % 2]) * 100_000)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_writer_that_is_killed_leaves_one_task_or_the_other(kills, tmp_path):
    rng = np.random.default_rng(0)
    store = Store(tmp_path)
    store.put("task", bytes([0]) * 100_000)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=environment
        )
        with writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
        content = Store(tmp_path).read(Store(tmp_path).digests["task"])
        assert content in (bytes([0]) * 100_000, bytes([1]) * 100_000)
    store.put("task", save({"prompt": np.ones((1, 2), np.float32)}))
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert names == {
        "manifest",
        "lock",
        json.loads((tmp_path / "manifest.json").read_text())["task"],
    }
