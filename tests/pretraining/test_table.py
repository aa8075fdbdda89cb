"""A teacher's table that is damaged is refused in one line that says what to do."""

import json

import numpy as np
import pytest

from prompt_tuning import embedded
from prompt_tuning.errors import UserError
from prompt_tuning.pretraining.table import MANIFEST, Table

from .conftest import write_table


def refused(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "make_table.py" in message
    return message


def test_a_whole_table_is_read(table):
    read = Table.open(table)
    assert len(read.texts) == len(read.window_vectors) == 200
    assert len(read.options) == len(read.option_vectors)
    assert len(read.pairs) == 300
    read.check_vocabulary(embedded.vocabulary())


def test_no_table(tmp_path):
    assert str(tmp_path) in refused(lambda: Table.open(tmp_path))


@pytest.mark.parametrize(
    ("content", "named"), [("{", "not valid JSON"), ("[]", "format None"), ('{"format": 99}', "99")]
)
def test_manifest_of_another_kind(tmp_path, content, named):
    (tmp_path / MANIFEST).write_text(content)
    assert named in refused(lambda: Table.open(tmp_path))


def test_vectors_of_another_shape(tmp_path):
    np.save(write_table(tmp_path) / "windows.npy", np.zeros((3, 16), np.float16))
    assert "windows.npy: has shape (3, 16)" in refused(lambda: Table.open(tmp_path))


@pytest.mark.parametrize("left", [b"", b"\x93NUMPY no", None])
def test_vectors_that_cannot_be_read(tmp_path, left):
    path = write_table(tmp_path) / "options.npy"
    path.unlink() if left is None else path.write_bytes(left)
    assert "options.npy" in refused(lambda: Table.open(tmp_path))


def test_pickles_are_not_read(tmp_path):
    np.save(write_table(tmp_path) / "pieces.npy", np.array([{}], object), allow_pickle=True)
    assert "pieces.npy" in refused(lambda: Table.open(tmp_path))


def test_rows_are_missing(tmp_path):
    path = write_table(tmp_path) / "pairs.jsonl"
    path.write_text(path.read_text().split("\n", 1)[1])
    assert "has 299 rows" in refused(lambda: Table.open(tmp_path).pairs)


def test_another_vocabulary(tmp_path, table):
    other = tmp_path / "other.model"
    other.write_bytes(b"other")
    assert str(other) in refused(lambda: Table.open(table).check_vocabulary(other))


def test_manifest_is_json(table):
    assert json.loads((table / MANIFEST).read_text())["teacher"] == "random"
