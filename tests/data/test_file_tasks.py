"""Tasks of files by name: the folder of each, and mixtures by a list of names."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.data.files import TextFiles, of_folder
from prompt_tuning.data.source import task_data
from prompt_tuning.errors import UserError

LENGTHS = {"inputs": 24, "targets": 4}
VOCABULARY = tasks.vocabulary(embedded.vocabulary())


@pytest.fixture
def data_dir(tmp_path) -> Path:
    for name, suffix in (("mail", "jsonl"), ("news", "jsonl")):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            rows = [{"title": f"{name} {i}", "text": "x", "label": i % 2} for i in range(20)]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name / f"{split}.{suffix}").write_text(lines)
    (tmp_path / "mail" / "test.csv").write_text("title,label\nold,spam\n")
    return tmp_path


def data_of(data_dir, task, **settings):
    made = []

    def folder(name: str, *labels: str):
        def files() -> TextFiles:
            made.append(name)
            return of_folder(name, str(data_dir), text_field="title", labels=labels)

        return files

    data = task_data(
        task=task,
        files=TextFiles(),
        file_tasks={"mail": folder("mail", "ham", "spam"), "news": folder("news", "old", "ham")},
        vocabulary=VOCABULARY,
        lengths=LENGTHS,
        batch_size=8,
        **settings,
    )
    return data, made


def test_files_of_a_folder(data_dir):
    actual = of_folder("mail", str(data_dir), labels=("ham", "spam"))
    assert actual.train == str(data_dir / "mail" / "train.jsonl")
    assert actual.test == str(data_dir / "mail" / "test.csv")
    assert of_folder("news", str(data_dir)).test == ""
    with pytest.raises(UserError, match="DATA_DIR = 'nowhere': nowhere/mail has no train"):
        of_folder("mail", "nowhere")
    (data_dir / "mail" / "train.csv").write_text("")
    with pytest.raises(UserError, match=r"train\.csv and train\.jsonl: two files for one split"):
        of_folder("mail", str(data_dir))


def test_a_task_of_files_by_name(data_dir):
    data, made = data_of(data_dir, "mail")
    assert made == ["mail"] and data.task == "mail"
    assert data.labels == ("ham", "spam")
    [test] = data.eval_sets("test")
    assert (test.task, test.inputs, test.targets) == ("mail", ["old"], ["spam"])


@pytest.mark.parametrize("few_shot", [None, 2])
def test_a_list_of_tasks_is_a_mixture_at_equal_rates(data_dir, few_shot):
    data, made = data_of(data_dir, ["mail", "news", "demo_reviews"], few_shot=few_shot)
    assert made == ["mail", "news"]
    assert data.labels == ("ham", "spam", "old", "negative", "positive")
    measured = {one.task.split("_2shot")[0] for one in data.eval_sets("validation")}
    assert measured == {"mail", "news", "demo_reviews"}
    stream = data.train_batches(0)
    drawn = [
        VOCABULARY.decode(row.tolist())
        for _ in range(30)
        for row in next(stream)["encoder_input_tokens"]
    ]
    shares = [np.mean([text.startswith(name) for text in drawn]) for name in ("mail", "news")]
    assert shares == pytest.approx([1 / 3, 1 / 3], abs=0.12)


def test_a_list_of_one(data_dir):
    data, _ = data_of(data_dir, ["news"])
    assert data.task == "news" and data.labels == ("old", "ham")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (["mail", "post"], "MIXTURE_OR_TASK_NAME = ['mail', 'post']: no task 'post'; available: "),
        (["mail", "mail"], "names a task twice"),
        ([], "no data: set MIXTURE_OR_TASK_NAME"),
    ],
)
def test_mistakes(data_dir, task, said):
    with pytest.raises(UserError) as actual:
        data_of(data_dir, task)
    assert said in str(actual.value)


@pytest.mark.parametrize("name", ["demo_reviews", "xsum_v110_examples", "of_a_module"])
def test_the_name_of_a_registered_task_is_not_free(data_dir, name, tmp_path, monkeypatch):
    (tmp_path / f"my_tasks_beside_{name}.py").write_text(
        "from prompt_tuning import embedded\n"
        "from prompt_tuning.data import tasks\n"
        "from prompt_tuning.data.files import Row\n"
        "vocabulary = tasks.vocabulary(embedded.vocabulary())\n"
        "tasks.register('of_a_module', {'train': lambda: [Row('a', 'b')]}, vocabulary)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    files = functools.partial(
        of_folder, "news", str(data_dir), text_field="title", labels=("a", "b")
    )
    for _ in range(2):  # the first try changes nothing
        with pytest.raises(UserError, match=f"^FILE_TASKS has '{name}': there is a registered"):
            task_data(
                task=name,
                files=TextFiles(),
                file_tasks={name: files},
                vocabulary=VOCABULARY,
                lengths=LENGTHS,
                batch_size=8,
                module=f"my_tasks_beside_{name}",
            )


def test_a_module_is_imported_before_a_list_of_its_tasks(data_dir, tmp_path, monkeypatch):
    (tmp_path / "my_listed_tasks.py").write_text(
        "from prompt_tuning import embedded\n"
        "from prompt_tuning.data import tasks\n"
        "from prompt_tuning.data.files import Row\n"
        "vocabulary = tasks.vocabulary(embedded.vocabulary())\n"
        "tasks.register('listed', {'train': lambda: [Row('a', 'b')]}, vocabulary)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data, _ = data_of(data_dir, ["listed", "news"], module="my_listed_tasks")
    assert data.tasks == ("listed", "news")


def test_tasks_of_files_follow_their_files(data_dir):
    """The name of an earlier task of files is free: notebooks set it again."""
    for _ in range(2):
        data, _ = data_of(data_dir, "mail")
        assert data.labels == ("ham", "spam")
