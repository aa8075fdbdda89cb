"""JSON lines that are interrupted anywhere end as those of an uninterrupted run."""

import json
from pathlib import Path

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.runtime import resumable_lines

COUNT, STEP = 11, 4


def lines(start: int, stop: int) -> list[dict]:
    return [{"line": i, "of the step": start, "text": "ä" * i} for i in range(start, stop)]


def write(path: Path, actual=lines, key: str = "k") -> None:
    resumable_lines.write(path, key, COUNT, STEP, actual)


@pytest.fixture
def whole(tmp_path) -> bytes:
    path = tmp_path / "whole" / "out.jsonl"
    write(path)
    return path.read_bytes()


def test_lines_are_written_in_order(whole):
    assert [json.loads(line)["line"] for line in whole.splitlines()] == list(range(COUNT))


def test_a_second_run_of_the_same_lines_is_refused(tmp_path, whole):
    path = tmp_path / "out.jsonl"

    def other(start: int, stop: int) -> list[dict]:
        with pytest.raises(UserError, match=r"out\.jsonl\.k\.part: another run is writing it"):
            write(path)
        return lines(start, stop)

    write(path, other)
    assert path.read_bytes() == whole
    write(path, key="other")
    assert path.read_bytes() == whole


def test_resumes_from_any_interruption(tmp_path, whole):
    path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.k.part"
    for cut in range(len(whole) + 1):
        part.write_bytes(whole[:cut])
        asked = []

        def actual(start: int, stop: int, asked: list = asked) -> list[dict]:
            asked.append(start)
            return lines(start, stop)

        write(path, actual)
        assert path.read_bytes() == whole
        assert not part.exists()
        done = whole[:cut].count(b"\n")
        assert asked == list(range(done // STEP * STEP, COUNT, STEP))


def test_a_failed_step_leaves_the_lines_before_it(tmp_path, whole):
    path = tmp_path / "out.jsonl"

    def fails(start: int, stop: int) -> list[dict]:
        if start == 8:
            raise RuntimeError("killed")
        return lines(start, stop)

    with pytest.raises(RuntimeError, match="killed"):
        write(path, fails)
    assert not path.exists()
    assert (tmp_path / "out.jsonl.k.part").read_bytes().count(b"\n") == 8
    write(path)
    assert path.read_bytes() == whole


def test_a_run_of_other_settings_begins_anew(tmp_path, whole):
    path = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.other.part").write_text('{"line": "of another run"}\n')
    write(path)
    assert path.read_bytes() == whole


def test_keys_tell_settings_apart():
    parts = [(["a"], 1), (["a"], 2), (["b"], 1)]
    assert len({resumable_lines.digest(*part) for part in parts}) == 3
    assert resumable_lines.digest(["a"], 1) == resumable_lines.digest(["a"], 1)


def test_letters_are_written_as_themselves(tmp_path):
    """And each line is one to every reader, and valid UTF-8 and JSON."""
    texts = ["ä 负面 🙂", "a\u2028b\x85c\nd", "half \ud83d", "\x00\x1c"]
    path = tmp_path / "out.jsonl"
    resumable_lines.write(path, "k", 4, 2, lambda a, b: [{"text": text} for text in texts[a:b]])
    written = path.read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in written] == texts
    assert written[0] == '{"text": "ä 负面 🙂"}'
