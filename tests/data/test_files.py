"""Reading and checking a user's own data files."""

import contextlib
import csv
import enum
import gzip
import json
import lzma
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from prompt_tuning.data.files import Row, TextFiles, of_folder
from prompt_tuning.errors import UserError
from prompt_tuning.serving.task_rows import TaskRows
from prompt_tuning.testing import Numbers

LABELS = ("negative", "positive")
ROWS = [
    ("A gem, truly.", "positive"),
    ('He said "no", twice.', "negative"),
    ("Tab\there; naïve café, 映画", "positive"),
]
EXPECTED = [Row(text, label) for text, label in ROWS]


def write(path: Path, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(data)
    return str(path)


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_table(path: Path, delimiter: str) -> str:
    plain = path.with_name("table")
    with plain.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["label", "text"])
        writer.writerows((label, text) for text, label in ROWS)
    return write(path, plain.read_bytes())


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_formats_hold_the_same_rows(tmp_path, kind, packed):
    path = tmp_path / f"train.{kind}{packed}"
    if kind == "jsonl":
        file = write(path, jsonl(*({"text": t, "label": label} for t, label in ROWS)))
    else:
        file = write_table(path, "," if kind == "csv" else "\t")
    assert TextFiles(train=file, labels=LABELS, quoted_cells=True).rows("train") == EXPECTED
    assert TextFiles(train=file, quoted_cells=True).rows("train") == EXPECTED


def test_splits_are_apart(tmp_path):
    files = TextFiles(
        train=write(tmp_path / "a.jsonl", jsonl({"text": "one", "label": "x"})),
        test=write(tmp_path / "b.jsonl", jsonl({"text": "two", "label": "y"})),
    )
    assert files.splits == ("train", "test")
    assert files.rows("train") == [Row("one", "x")]
    assert files.rows("test") == [Row("two", "y")]


def test_labels_by_index(tmp_path):
    numbers = write(tmp_path / "a.jsonl", jsonl(*({"text": "t", "label": i} for i in (1, 0))))
    digits = write(tmp_path / "a.csv", "text,label\nt,1\nt,0\n")
    expected = [Row("t", "positive"), Row("t", "negative")]
    assert TextFiles(train=numbers, labels=LABELS).rows("train") == expected
    assert TextFiles(train=digits, labels=LABELS).rows("train") == expected


def test_a_label_word_of_digits_is_a_word_before_it_is_an_index(tmp_path):
    file = write(tmp_path / "a.csv", "text,label\nt,1\nt,2\n")
    assert [r.targets for r in TextFiles(train=file, labels=("1", "2")).rows("train")] == ["1", "2"]


def test_several_fields_are_joined_with_their_names(tmp_path):
    row = {"hypothesis": "It rains.", "premise": "It pours.", "label": "yes"}
    file = write(tmp_path / "a.jsonl", jsonl(row))
    files = TextFiles(train=file, text_field=["premise", "hypothesis"])
    assert files.rows("train") == [Row("premise: It pours. hypothesis: It rains.", "yes")]


SPREADSHEETS = {
    "byte order mark": ("a.csv", b"\xef\xbb\xbftext,label\r\n\r\ngood,positive\r\n\r\n"),
    "byte order mark, JSON": (
        "a.jsonl",
        b'\xef\xbb\xbf{"text": "good", "label": "positive"}\r\n\n',
    ),
    "empty columns": ("a.csv", "text,label,,\ngood,positive,,\n"),
    "empty columns in quotes": ("a.csv", '"text","label",""\n"good","positive",""\n'),
    "empty columns of TSV": ("a.tsv", "text\tlabel\t\t \ngood\tpositive\t\t\n"),
    "empty columns that rows lack": ("a.csv", "text,label,,\ngood,positive\n"),
    "empty rows at the end": ("a.csv", "text,label,\ngood,positive,\n,,\n , ,\n"),
    "the index of pandas": ("a.csv", ",text,label\n0,good,positive\n"),
    "spaces in the header": ("a.csv", "text , label\ngood,positive\n"),
    "a space after each comma": ("a.csv", 'label, text\n"positive", "good"\n'),
    "spaces in a header of TSV": ("a.tsv", " text\tlabel \ngood\tpositive\n"),
    "CSV in capitals": ("A.CSV", "text,label\ngood,positive\n"),
    "TSV in capitals": ("A.TSV", "text\tlabel\ngood\tpositive\n"),
    "compressed, in capitals": ("A.Csv.gz", "text,label\ngood,positive\n"),
    "lines of JSON": ("a.json", jsonl({"text": "good", "label": "positive"})),
    "lines of JSON in capitals": ("A.JSONL", jsonl({"text": "good", "label": "positive"})),
}


@pytest.mark.parametrize(("name", "content"), SPREADSHEETS.values(), ids=SPREADSHEETS)
def test_what_spreadsheets_and_editors_leave_behind(tmp_path, name, content):
    file = write(tmp_path / name, content)
    assert TextFiles(validation=file).rows("validation") == [Row("good", "positive")]
    write(tmp_path / f"test.{name.partition('.')[2]}", content)
    assert of_folder(".", str(tmp_path)).rows("test") == [Row("good", "positive")]
    content = (content if isinstance(content, bytes) else content.encode()).replace(
        b"label", b"task"
    )
    mixed = TaskRows(write(tmp_path / f"mixed{name}", content), "", Numbers())
    assert [(row.text, row.task) for row in mixed.rows(["positive"])] == [("good", "positive")]


def test_line_breaks_inside_a_quoted_cell(tmp_path):
    file = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",x\nthree,\n')
    with pytest.raises(UserError, match=r"a\.csv, line 4: 'label' is empty"):
        TextFiles(train=file).rows("train")
    file = write(tmp_path / "b.csv", 'text,label\n"one\ntwo",x\n')
    assert TextFiles(train=file).rows("train") == [Row("one\ntwo", "x")]


TSV = "text\tlabel\n"
UNQUOTED = [
    (
        '"Great film, he said\tpositive\nDull film\tnegative\nand left"\tpositive\n',
        ['"Great film, he said', "Dull film", 'and left"'],
    ),
    ('5" screen\tpositive\nA 3" one\tnegative\n', ['5" screen', 'A 3" one']),
    ('"\tpositive\n"\tnegative\n', ['"', '"']),
    ('"Yes" he said\tpositive\r\n\r\n"No"\tnegative\r\n', ['"Yes" he said', '"No"']),
    ("a, b\tpositive", ["a, b"]),
]


@pytest.mark.parametrize(("content", "texts"), UNQUOTED)
def test_quotes_are_text_where_cells_are_not_quoted(tmp_path, content, texts):
    write(tmp_path / "train.tsv", TSV + content)
    write(tmp_path / "mixed.tsv", (TSV + content).replace("label", "task"))
    write(tmp_path / "b.csv", (TSV + content).replace(",", ";").replace("\t", ","))
    path = str(tmp_path / "train.tsv")
    rows_of = [
        TextFiles(test=path, labels=LABELS).rows("test"),
        TextFiles(test=path, label_field="").rows("test"),
        TextFiles(test=path, labels=LABELS, quoted_cells=False).rows("test"),
        of_folder(".", str(tmp_path), labels=LABELS).rows("train"),
        TextFiles(test=str(tmp_path / "b.csv"), quoted_cells=False).rows("test"),
    ]
    for rows in rows_of:
        assert [row.inputs.replace(";", ",") for row in rows] == texts
    mixed = TaskRows(str(tmp_path / "mixed.tsv"), "", Numbers())
    assert [row.text for row in mixed.rows(LABELS)] == texts


@pytest.mark.parametrize(
    ("content", "quoted", "message"),
    [
        ('"Great film, he said\tpositive\nand left"\tpositive\n', True, "line 2: a line break"),
        ('"two\nlines"\tpositive\n', True, "line 2: a line break inside a cell"),
        ('"two\nlines"\tpositive\n', None, "line 2: 1 columns, but 2 .*; quotes are text here"),
        ('"a\tb"\tpositive\n', None, "line 2: 3 columns, but 2 .* see QUOTED_CELLS"),
        ("two\rlines\tpositive\n", None, "line 2: a line break inside a cell"),
        ('"a" b\tpositive\n', True, "line 2: malformed row"),
    ],
)
def test_a_cell_of_several_lines_or_columns(tmp_path, content, quoted, message):
    file = write(tmp_path / "a.tsv", TSV + content)
    with pytest.raises(UserError, match=message):
        TextFiles(test=file, quoted_cells=quoted).rows("test")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("text,label\rGreat,positive\rBad,negative\r", 1),
        ("text,label\rGreat,positive", 1),
        ("text,label\nGreat,positive\rBad,negative\r", 2),
    ],
)
def test_lines_that_end_in_a_carriage_return_alone(tmp_path, content, line):
    file = write(tmp_path / "a.csv", content)
    with pytest.raises(UserError, match=f"line {line}: lines end in a carriage return alone"):
        TextFiles(test=file).rows("test")


def test_a_warning_of_cells_that_seem_to_be_quoted(tmp_path):
    content = '"He said ""no""."\tpositive\n'
    file = write(tmp_path / "many.tsv", TSV + 3 * content)
    with pytest.warns(UserWarning, match="line 2: a cell seems to be quoted") as caught:
        TextFiles(test=file).rows("test")
    assert len(caught) == 1
    file = write(tmp_path / "a.tsv", TSV + content)
    [row] = TextFiles(test=file, quoted_cells=False).rows("test")
    assert row.inputs == '"He said ""no""."'
    [row] = TextFiles(test=file, quoted_cells=True).rows("test")
    assert row.inputs == 'He said "no".'


@pytest.mark.parametrize("names", [["text", "text"], ("a", "b", "a"), ["caf\u00e9", "cafe\u0301"]])
def test_a_text_field_once(names):
    with pytest.raises(UserError, match=r"TEXT_FIELD = .*: names a field twice"):
        TextFiles(text_field=names)


@pytest.mark.parametrize("text_field", ["label", ["text", "label"], ("label",)])
def test_a_label_in_the_input(text_field):
    with pytest.raises(UserError, match="LABEL_FIELD = 'label': is in TEXT_FIELD too"):
        TextFiles(text_field=text_field, labels=LABELS)
    assert TextFiles(text_field=text_field).labels == ()  # to copy a text is a task


GOOD = jsonl({"text": "fine", "label": "positive"})
TABLE = "text,label\nfine,positive\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + '{"text": \n', r"a\.jsonl, line 2: not JSON \("),
        ("a.jsonl", GOOD + "\n[1, 2]\n", r"line 3: expected a JSON object, got \[1, 2\]"),
        ("a.jsonl", GOOD.encode() + b'{"text": "\xff"}\n', r"a\.jsonl, line 2: not UTF-8"),
        ("a.jsonl", b"\xff\xfe" + GOOD.encode("utf-16-le"), r"line 1: not UTF-8"),
        ("a.jsonl", "", r"a\.jsonl: no rows"),
        ("a.csv", "", r"a\.csv: no rows"),
        ("a.csv", "text,label\n", r"a\.csv: no rows"),
        ("a.csv", TABLE + "a,b,positive\n", r"a\.csv, line 3: 3 columns, but 2 in the header"),
        ("a.csv", TABLE + "positive\n", r"line 3: 1 columns, but 2"),
        ("a.csv", "text,text\nfine,positive\n", "two columns with the same name in the header"),
        ("a.csv", "text, text\nfine,positive\n", "two columns with the same name in the header"),
        ("a.csv", "text;label\nfine;positive\n", "by commas, not semicolons: convert the file"),
        ("a.CSV", "text\tlabel\nfine\tpositive\n", "line 1: the header .* not tabs: convert"),
        ("a.tsv", "text,label\nfine,positive\n", "separated by tabs, not commas: convert"),
        ("a.tsv", "\ntext|label\nfine|positive\n", "line 2: the header 'text|label' is one"),
        ("a.csv", "text,label,\nfine, not,positive\n", r"line 2: column 3 contains 'positive'"),
        ("a.csv", "text,,label\nfine,x,positive\n", r"column 2 contains 'x', but has no name"),
        ("a.csv", TABLE + "fine, not,\n", r"line 3: 3 columns, but 2 in the header"),
        ("a.csv", "text,label\n,\nfine,positive\n", r"a\.csv, line 2: 'text' is empty"),
        ("a.csv", 'text\n""\nfine\n', r"a\.csv, line 2: 'text' is empty"),
        ("a.jsonl", '{"text": "fine", "label": "x", "text": "dull"}', "same name 'text'"),
        ("a.jsonl", '{"label": "x", "more": [{"a": 1, "a": 2}]}', "same name 'a'"),
        ("a.jsonl", '{"caf\u00e9": "x", "cafe\u0301": "y"}', "same name 'caf\u00e9'"),
        ("a.json", '[{"text": "fine"}]', "line 1: expected a JSON object, got"),
        ("a.json", '[\n{"text": "fine"}\n]', "line 1: not JSON .* an object on a line of its own"),
        (
            "a.csv",
            TABLE + TABLE,
            r"a\.csv, line 3: is the header again, as where tables are joined",
        ),
        ("a.csv", TABLE + "label, text\n", r"line 3: 'label' is 'text', not"),
        ("a.tsv", "text\tlabel\tid\na\t1\t7\ntext\tlabel \tid\n", "line 3: is the header again"),
        ("a.csv", TABLE + '"Yes" he said,positive\n', r"a\.csv, line 3: malformed row \("),
        ("a.csv", TABLE + '"never closed,positive\n', r"line 3: malformed row"),
        ("a.tsv", "text\tlabel\nfine,positive\n", r"a\.tsv, line 2: 1 columns, but 2"),
        (
            "a.jsonl",
            GOOD + jsonl({"text": "t", "sentiment": 1}),
            r"line 2: no field 'label'; available: sentiment, text$",
        ),
        (
            "a.csv",
            "sentence,label\nfine,positive\n",
            r"line 2: no field 'text'; available: label, sentence$",
        ),
        (
            "a.jsonl",
            GOOD + jsonl({"text": "t", "label": "good"}),
            r"line 2: .*'good'.*'negative', 'pos",
        ),
        ("a.jsonl", jsonl({"text": "t", "label": 2}), r"line 1: 'label' is 2.*from 0 to 1"),
        ("a.jsonl", jsonl({"text": "t", "label": -1}), r"line 1: 'label' is -1"),
        ("a.jsonl", jsonl({"text": "t", "label": True}), r"line 1: 'label' is True"),
        ("a.jsonl", jsonl({"text": "t", "label": None}), r"line 1: 'label' is None"),
        ("a.jsonl", jsonl({"text": "t", "label": [0]}), r"line 1: 'label' is \[0\]"),
        ("a.csv", "text,label\nt,2\n", r"line 2: 'label' is '2'"),
        ("a.csv", "text,label\nt,²\n", r"line 2: 'label' is '²'"),
        ("a.jsonl", jsonl({"text": " ", "label": 1}), r"line 1: 'text' is empty"),
        ("a.jsonl", jsonl({"text": 7, "label": 1}), r"line 1: 'text' is 7, not a string"),
        ("a.jsonl", jsonl({"text": None, "label": 1}), r"line 1: 'text' is null, not a string"),
        ("a.txt", GOOD, r"a\.txt: unknown format; must end in \.jsonl, \.json, \.csv"),
        ("a.parquet.gz", GOOD, r"a\.parquet\.gz: unknown format"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, message):
    file = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        TextFiles(train=file, labels=LABELS).rows("train")
    assert str(caught.value).startswith(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", [3, True])
def test_numbers_for_target_texts_ask_for_the_labels(tmp_path, target):
    file = write(tmp_path / "a.jsonl", jsonl({"text": "t", "label": target}))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: .*set CLASS_LABELS"):
        TextFiles(train=file).rows("train")


@pytest.mark.parametrize("target", [3.5, "", None])
def test_bad_target_texts(tmp_path, target):
    file = write(tmp_path / "a.jsonl", jsonl({"text": "t", "label": target}))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: 'label' is (3.5, not|empty|null, not)"):
        TextFiles(train=file).rows("train")


@pytest.mark.parametrize(
    ("split", "macro"),
    [("train", "TRAIN_FILE"), ("validation", "VALIDATION_FILE"), ("test", "TEST_FILE")],
)
def test_a_split_without_a_file_names_its_macro(split, macro):
    with pytest.raises(UserError, match=f"'{split}': set {macro}$"):
        TextFiles().rows(split)


def test_unknown_split():
    with pytest.raises(UserError, match="'dev': available: train, validation, test"):
        TextFiles().rows("dev")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        TextFiles(train=str(tmp_path / "gone.csv")).rows("train")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv: folder contains no saved data set"):
        TextFiles(train=str(tmp_path / "folder.csv")).rows("train")
    for suffix in (".gz", ".xz"):
        whole = Path(write(tmp_path / f"a.csv{suffix}", TABLE)).read_bytes()
        for number, broken in enumerate((TABLE.encode(), whole[: len(whole) // 2])):
            path = tmp_path / f"{number}.csv{suffix}"
            path.write_bytes(broken)
            with pytest.raises(UserError, match=r"\.csv\.[gx]z: cannot be read"):
                TextFiles(train=str(path)).rows("train")


@pytest.mark.parametrize("labels", [("a", "a"), ("a", ""), ("a", 1), "ab"])
def test_labels_must_be_different_words(labels):
    with pytest.raises(UserError, match="CLASS_LABELS"):
        TextFiles(labels=labels)


def test_released_files_with_integer_labels(shared_data):
    folder = shared_data / "tasks" / "trec_qc"
    about = json.loads((folder / "dataset_info.json").read_text())
    splits = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    files = TextFiles(**splits, labels=about["labels"])
    for split, info in about["splits"].items():
        targets = [row.targets for row in files.rows(split)]
        assert len(targets) == info["rows"]
        assert {label: targets.count(label) for label in about["labels"]} == info["label_counts"]


def test_needs_no_tensorflow():
    code = (
        "import sys, prompt_tuning.data.files, prompt_tuning.data.metrics, prompt_tuning.errors\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'seqio', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_place_where_a_packed_file_is_damaged(tmp_path):
    """Of blocks that are whole, lines come out; the block behind them is cut."""
    blocks = [gzip.compress(b'{"text": "a", "label": "no"}\n') for _ in range(3)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(blocks)[:-12])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read after line [23] \("):
        TextFiles(train=str(path), labels=("no", "yes")).rows("train")


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        (['"Good film"\tno', '"Bad ""film"""\tyes'], "text"),
        (['Good\t"no"', 'Bad\t"yes"'], "label"),
        (['"Good"\t"no"', '"Bad"\t"yes"', '""\t"no"'], "label"),
        (['"Good"\tno', "Bad\tno"], ""),
        (['"Good" film\tno', '"Bad" film\tno'], ""),
        (['"Good\tno', 'Bad"\tno'], ""),
        (['"Good"\tno'], ""),
    ],
)
def test_a_column_in_quotes_that_are_text(cells, column, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(["text\tlabel", *cells]) + "\n", encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for quoted in (False, True, False):
            with contextlib.suppress(UserError):  # what is no quoted cell
                TextFiles(test=str(path), quoted_cells=quoted).rows("test")
    told = [str(each.message) for each in caught if "begin and end with a quote" in str(each)]
    assert len(told) == bool(column)
    assert all(f"all {len(cells)} cells of {column!r}" in message for message in told)


@pytest.mark.parametrize(
    "text", ["\u200b", "\ufeff", " \u200d\u200c ", "\u00ad", "\u2028", "\u0301", "\ufffd", "\u2581"]
)
def test_texts_and_words_without_a_visible_character(text, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": text, "label": "no"}) + "\n")
    with pytest.raises(UserError, match="line 1: 'text' is empty"):
        TextFiles(test=str(path), labels=("no",)).rows("test")
    with pytest.raises(UserError, match="is empty; write a word"):
        TextFiles(labels=("no", text))


def test_texts_with_invisible_characters_among_others(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "\u200ba", "label": "\u0915\u094d\u200d\u0937"}) + "\n")
    assert TextFiles(test=str(path)).rows("test")[0].inputs == "\u200ba"


@pytest.mark.parametrize(
    ("names", "text_field", "is_error"),
    [
        (("text", "inputs_pretokenized"), "text", True),
        (("a", "b", "inputs_pretokenized"), ["a", "b"], True),
        (("text", "inputs_pretokenized", "id"), "inputs_pretokenized", False),
        (("text", "Inputs_pretokenized"), "text", False),
    ],
)
def test_a_column_of_the_name_that_predictions_give_the_text(names, text_field, is_error, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(dict.fromkeys(names, "x")) + "\n")
    files = TextFiles(test=str(path), text_field=text_field, label_field="", keep_columns=True)
    several = TaskRows(str(path), str(tmp_path), None, text_field=text_field, task_field="text")
    if is_error:
        with pytest.raises(UserError, match="line 1: has a column 'inputs_pretokenized'"):
            files.rows("test")
        with pytest.raises(UserError, match=r"has a column 'inputs_pretokenized'|no field"):
            several.rows(["x"])
    else:
        [row] = files.rows("test")
        assert row.columns == dict.fromkeys({*names} - {text_field}, "x")
        assert len(several.rows(["x"])) == 1


class Words(str, enum.Enum):  # noqa: UP042 (str of a StrEnum's is the text)
    """Whose members are strings, though `str` of one is its name."""

    TITLE = "title"
    BODY = "body"
    NO = "no"
    YES = "yes"


def test_settings_that_are_members_of_an_enumeration(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"title": "A", "body": "B", "label": "yes"}))
    files = TextFiles(
        train=path, text_field=[Words.TITLE, Words.BODY], labels=[Words.NO, Words.YES]
    )
    assert files == TextFiles(train=path, text_field=("title", "body"), labels=("no", "yes"))
    [row] = files.rows("train")
    assert (row.inputs, row.targets) == ("title: A body: B", "yes")
    assert f"{TextFiles(train=path, text_field=Words.BODY).text_field}" == "body"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_texts_that_were_decoded_wrongly(tmp_path, ending):
    def read(text: str) -> str:
        path = tmp_path / f"a.{ending}"
        write(path, jsonl({"text": text}) if ending == "jsonl" else f"text\n{text}\n")
        [row] = TextFiles(train=str(path), label_field="").rows("train")
        return row.inputs

    with pytest.warns(UserWarning, match=r"texts of 'text' contain U\+FFFD"):
        assert read("a caf\ufffd") == "a caf\ufffd"
