"""Names in any Unicode form, and errors about values that look like what they are not."""

import json
import unicodedata

import numpy as np
import pytest

from prompt_tuning import embedded, serving
from prompt_tuning.data import tasks
from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.source import task_data
from prompt_tuning.data.unicode_form import shown_beside
from prompt_tuning.errors import UserError
from prompt_tuning.serving import prompt_folder
from prompt_tuning.serving.task_rows import TaskRows
from prompt_tuning.testing import Numbers, clean_registries, tiny_model

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
FORMS = pytest.mark.parametrize("name", [COMPOSED, DECOMPOSED], ids=["composed", "decomposed"])


@FORMS
@pytest.mark.parametrize("other", [COMPOSED, DECOMPOSED], ids=["composed", "decomposed"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_column(tmp_path, name, other, ending):
    """The text of a row is left as it is."""
    path = tmp_path / f"test.{ending}"
    separator = "\t" if ending == "tsv" else ","
    row = {name: DECOMPOSED, "label": "no"}
    table = "\n".join(separator.join(line) for line in (row.keys(), row.values()))
    path.write_text(json.dumps(row) if ending == "jsonl" else table)
    [read] = TextFiles(test=str(path), text_field=other, labels=["no", "yes"]).rows("test")
    assert read.inputs == DECOMPOSED


def test_two_columns_of_one_name(tmp_path):
    (tmp_path / "test.csv").write_text(f"{COMPOSED},{DECOMPOSED}\na,b\n")
    with pytest.raises(UserError, match="two columns with the same name in the header"):
        TextFiles(test=str(tmp_path / "test.csv"), text_field=COMPOSED).rows("test")


@FORMS
def test_a_task_of_files(tmp_path, name):
    (tmp_path / "test.csv").write_text("text,label\na,no\n")
    files = TextFiles(test=str(tmp_path / "test.csv"), labels=["no", "yes"])
    with clean_registries():
        data = task_data(
            task=name,
            files=TextFiles(),
            file_tasks={DECOMPOSED: lambda: files},
            vocabulary=tasks.vocabulary(embedded.vocabulary()),
            lengths={"inputs": 8, "targets": 4},
            batch_size=1,
        )
        assert data.task == COMPOSED
        with pytest.raises(UserError, match=r"NAME = 'cafe': no such task .* did you mean café"):
            type(data)("cafe", data.lengths, 1)


@FORMS
def test_a_served_task(name):
    tuned = tiny_model()
    model = serving.Model(tuned.model.config, tuned.params, Numbers(), tuned.layout, batch_size=8)
    model.add_task(DECOMPOSED, None, labels=["12", "13"])
    assert model.tasks == (COMPOSED,) and model.labels(name) == ("12", "13")
    assert model.task_set.task_of_each(["4"], [name]) == [COMPOSED]
    with pytest.raises(UserError, match="already exists"):
        model.add_task(name, None)
    with pytest.raises(UserError, match=r"no task 'cafe'; available: café"):
        model(["4"], "cafe")
    model.remove_task(name)
    assert model.tasks == ()


@FORMS
def test_a_folder_of_prompts(tmp_path, name):
    np.save(tmp_path / f"{DECOMPOSED}.npy", np.zeros((1, 4), np.float32))
    (tmp_path / "labels.json").write_text(json.dumps({name: ["a", "b"]}))
    assert [*prompt_folder.files(tmp_path)] == [COMPOSED]
    assert prompt_folder.labels(tmp_path) == {COMPOSED: ["a", "b"]}
    (tmp_path / "rows.csv").write_text(f"text,task\na,{name}\n")
    rows = TaskRows(str(tmp_path / "rows.csv"), str(tmp_path), Numbers())
    assert rows.rows([COMPOSED]) == [("a", COMPOSED, {})]


@pytest.mark.parametrize(
    ("value", "known", "shown"),
    [
        ("café", ["cafe"], r"'caf\xe9'"),
        ("ﬁne", ["fine", "bad"], r"'\ufb01ne'"),
        ("\u0440ositive", ["positive"], r"'\u0440ositive'"),  # a Cyrillic letter
        ("good\u200b", ["good"], r"'good\u200b'"),
        ("负面的", ["负面"], "'负面的'"),
        ("schlecht", ["böse"], "'schlecht'"),
        ("True", [True, False], "'True'"),
        (True, ["True"], "True"),
        (5, ["5"], "5"),
        (["a"], ["a"], "['a']"),
    ],
)
def test_what_looks_alike_is_shown_with_escapes(value, known, shown):
    assert shown_beside(value, known) == shown


@pytest.mark.parametrize("field", [0, [], "", ["a", ""], [["a"]], {"a"}, b"text"])
def test_names_of_fields(field):
    with pytest.raises(UserError, match=r"TEXT_FIELD = .*: must be the name of the text's field"):
        TextFiles(text_field=field)


@pytest.mark.parametrize("field", [0, None, ["label"]])
def test_names_of_a_label_field(field):
    with pytest.raises(UserError, match=r"LABEL_FIELD = .*: must be the name of a field"):
        TextFiles(label_field=field)
