"""No text of pre-training shares a run of words with evaluation data."""

import json
import lzma

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.pretraining.overlap import HeldOut, evaluation_texts

RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"


@pytest.mark.parametrize(
    ("text", "is_seen"),
    [
        (f"Before it, {RUN}; and after.", True),
        (RUN.upper().replace(" ", ", "), True),
        (RUN.replace("seven", "other"), False),
        (" ".join(RUN.split()[:12]), False),
        (RUN.removeprefix("one ") + " fourteen", False),
        ("", False),
    ],
)
def test_a_run_of_thirteen_words_is_found(text, is_seen):
    assert (text in HeldOut([f"It says {RUN} and more"])) == is_seen


def test_a_shorter_text_is_found_whole():
    held_out = HeldOut(["what is the capital city of old France", "too short to say"])
    assert "I asked: What is the capital city of old France?" in held_out
    assert "what is the capital city of new France" not in held_out
    assert "this is too short to say anything" not in held_out


def test_nothing_is_held_out():
    assert RUN not in HeldOut([])


def test_rows_of_all_splits_are_evaluation_texts(tmp_path):
    for name, split in (("quiz", "train"), ("quiz", "test"), ("trained_on", "train")):
        (tmp_path / name).mkdir(exist_ok=True)
        row = {"text": f"{name} {split}", "more": {"answers": ["inside", 3]}, "label": 1}
        with lzma.open(tmp_path / name / f"{split}.jsonl.xz", "wt") as file:
            file.write(json.dumps(row) + "\n")
    actual = set(evaluation_texts(str(tmp_path), ["trained_on"]))
    assert {"quiz train", "quiz test", "inside"} <= actual
    assert "trained_on train" not in actual
    assert len(actual) > 3_000  # the demo's tasks too


def test_the_demo_tasks_alone():
    assert len(list(evaluation_texts(""))) > 3_000


def test_a_folder_without_sets(tmp_path):
    with pytest.raises(UserError, match=r"--held_out=.*one folder for each data set"):
        list(evaluation_texts(str(tmp_path)))
