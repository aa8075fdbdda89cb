"""Malformed rows: one line with file and row, or skipped and counted."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.data.readers import records
from prompt_tuning.data.readers.records import LONGEST, BadRows
from prompt_tuning.errors import UserError

LABELS = ("no", "yes")
GOOD = b'{"text": "fine", "label": "yes"}\n'
TABLE = b"text,label\nfine,yes\n"
# A malformed row, with the end of its line, and what the error says after file and line.
JSON_ROWS = {
    b'{"text": \n': "not JSON",
    b'{"text": 1' + b"0" * 5000 + b"}\n": "JSON that cannot be read",
    b"[" * 100_000 + b"\n": "JSON that cannot be read",
    b"7\n": "expected a JSON object, got 7",
    b'{"text": "\xff", "label": "yes"}\n': "not UTF-8 text",
    b'{"text": "a\0b", "label": "yes"}\n': "not UTF-8 text: contains a NUL character",
    b'{"text": "a\\u0000b", "label": "yes"}\n': "'text' contains a NUL character",
    b'{"text": "a\\ud800b", "label": "yes"}\n': "'text' contains half a surrogate pair",
    b'{"text": "", "label": "yes"}\n': "'text' is empty",
    b'{"text": ["fine"], "label": "yes"}\n': "'text' is [\"fine\"], not a string",
    b'{"label": "yes"}\n': "no field 'text'; available: label",
    b'{"text": "fine", "label": "maybe"}\n': "'label' is 'maybe', not one of",
    b'{"text": "fine", "label": 1.0}\n': "'label' is 1.0, not one of",
    b'{"text": "fine", "label": {"yes": 1}}\n': "'label' is {'yes': 1}, not one of",
    b'{"text": "'
    + b"x" * 10_000_000
    + b'", "label": "yes"}\n': "a line of more than 1048576 bytes",
}
TABLE_ROWS = {
    b"fine\n": "1 columns, but 2 in the header",
    b"fine,yes,\n": "3 columns, but 2 in the header",
    b",yes\n": "'text' is empty",
    b"fine,maybe\n": "'label' is 'maybe', not one of",
    b"fine,2\n": "'label' is '2', not one of",
    b"fine," + b"9" * 5000 + b"\n": "'label' is '999",
    b"f\xffne,yes\n": "not UTF-8 text",
    b"f\0ne,yes\n": "not UTF-8 text: contains a NUL character",
    b'"fine" she said,yes\n': "malformed row",
    b'"never closed,yes\n': "malformed row",
    b"x" * 10_000_000 + b",yes\n": "a line of more than 1048576 bytes",
}
CASES = [("jsonl", GOOD, row, why) for row, why in JSON_ROWS.items()]
CASES += [("csv", TABLE, row, why) for row, why in TABLE_ROWS.items()]


def texts(path: Path, bad_rows: BadRows | None = None) -> list[Row]:
    files = TextFiles(train=str(path), labels=LABELS, bad_rows=bad_rows or BadRows())
    return files.rows("train")


@pytest.mark.parametrize(
    ("kind", "before", "row", "why"), CASES, ids=[f"{c[0]}: {c[3][:40]}" for c in CASES]
)
def test_is_one_line_or_skipped(tmp_path, kind, before, row, why):
    path = tmp_path / f"a.{kind}"
    after = GOOD if kind == "jsonl" else b"fine,yes\n"
    path.write_bytes(before + row + after * 2)
    line = before.count(b"\n") + 1
    with pytest.raises(UserError) as caught:
        texts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: {why}")
    assert "\n" not in message and len(message) < 500 + len(str(path))
    bad_rows = BadRows(1)
    assert texts(path, bad_rows) == [Row("fine", "yes")] * 3
    assert bad_rows.summary() == f"bad rows skipped: 1 ({path} 1)"


def test_a_quote_that_is_never_closed_takes_one_row_only(tmp_path):
    path = tmp_path / "a.csv"
    rows = "".join(f"text {i},yes\n" for i in range(50))
    path.write_text(f'text,label\n"open,yes\n{rows}"also open,no\n"two\nlines",no\n')
    bad_rows = BadRows(2)
    assert texts(path, bad_rows)[-1] == Row("two\nlines", "no")
    assert len(texts(path, bad_rows)) == 51
    with pytest.raises(UserError, match=r"line 53: malformed row .* \(skipped before it: 1"):
        texts(path, BadRows(1))


def test_what_is_too_long_is_not_held(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"x" * 50_000_000 + b"\n" + GOOD)
    tracemalloc.start()
    try:
        assert len(texts(path, BadRows(1))) == 2
        assert tracemalloc.get_traced_memory()[1] < 10 * LONGEST
    finally:
        tracemalloc.stop()


def test_the_longest_line_there_may_be(tmp_path):
    frame = len(b'{"text": "", "label": "yes"}')
    for more, good in ((0, True), (1, False)):
        path = tmp_path / "a.jsonl"
        text = "x" * (LONGEST - frame + more)
        path.write_text(f'{{"text": "{text}", "label": "yes"}}\n')
        if good:
            assert texts(path) == [Row(text, "yes")]
        else:
            with pytest.raises(UserError, match=r"line 1: a line of more than"):
                texts(path)


def test_a_header_is_never_skipped(tmp_path):
    for header in (b"te\xfft,label\n", b'"text,label\n', b"te\0t,label\n"):
        path = tmp_path / "a.csv"
        path.write_bytes(header + b"fine,yes\n")
        with pytest.raises(UserError, match=r"a\.csv, line 1: "):
            texts(path, BadRows(9))


def test_budget_is_of_all_files_and_a_row_counts_once(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_bytes(b"{\n" + GOOD + b"{\n")
    two.write_bytes(GOOD + b"{\n")
    bad_rows = BadRows(2)
    files = TextFiles(train=str(one), validation=str(two), labels=LABELS, bad_rows=bad_rows)
    assert files.rows("train") == files.rows("train") == [Row("fine", "yes")]
    with pytest.raises(UserError, match=r"two\.jsonl, line 2: not JSON .*\(skipped before it: 2"):
        files.rows("validation")
    assert bad_rows.summary() == f"bad rows skipped: 2 ({one} 2)"
    bad_rows = BadRows(5)
    assert texts(one, bad_rows) == texts(two, bad_rows)
    assert bad_rows.summary() == f"bad rows skipped: 3 ({one} 2, {two} 1)"


def test_a_file_of_bad_rows_has_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n")
    with pytest.raises(UserError, match=r"no rows; bad rows skipped: 1 \("):
        texts(path, BadRows(3))


def test_nothing_to_tell():
    assert BadRows().summary() == ""
    assert BadRows(3).summary() == "bad rows skipped: 0"
    with pytest.raises(UserError, match="SKIP_BAD_ROWS = -1: must be a whole number from 0"):
        BadRows(-1)


def test_a_file_may_be_streamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"{\n" + GOOD)
    actual = records.stream(path, lambda fields, where: (fields["label"], where), BadRows(1))
    assert list(actual) == [("yes", f"{path}, line 1"), ("yes", f"{path}, line 3")]


@pytest.mark.slow
def test_benchmark_files_in_the_padding_report(tmp_path):
    (tmp_path / "rte").mkdir()
    path = tmp_path / "rte" / "train.jsonl"
    rows = [
        {"premise": "It pours.", "hypothesis": "It rains.", "label": label} for label in (0, 1, 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def report(*options: str) -> subprocess.CompletedProcess[str]:
        task = "--task=taskless_super_glue_rte_v102_examples"
        command = [sys.executable, "-m", "prompt_tuning.data.padding_report", task, *options]
        command.append(f"--data_dir={tmp_path}")
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = report()
    assert (refused.returncode, refused.stdout) == (2, "")
    place = f"error: {path}, line 3: 'label' is 2, not a number from 0 to 1"
    assert refused.stderr == f"{place} (entailment, not_entailment)\n"
    done = report("--skip_bad_rows=1")
    assert done.returncode == 0
    assert done.stdout.endswith(f"bad rows skipped: 1 ({path} 1)\n")
