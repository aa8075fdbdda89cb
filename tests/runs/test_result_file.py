"""`result.json`: one form, and the forms of files from before it."""

import dataclasses
import json

import pytest
from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.runs.result_file import Result, of_first_method

RESULT = Result(
    task="reviews",
    splits={"reviews": "test"},
    scores={
        "reviews": {
            "majority": {"rank/f1": 0.25, "rank/accuracy": 0.5, "generate/f1": 0.0},
            "frozen": {"rank/f1": 0.5, "rank/accuracy": 0.625, "generate/f1": 0.25},
            "trained": {"rank/f1": 0.75, "rank/accuracy": 0.75, "generate/f1": 0.5},
        }
    },
    best_step=4,
    validation={"rank/accuracy": 0.75},
    trained_parameters=64,
    total_parameters=1_064,
    resumed_from_step=2,
    seconds=1.5,
)
# As `train` wrote it for one task, and for a mixture.
FORMER = {
    "task": "reviews",
    "split": "test",
    "scores": {
        name: RESULT.scores["reviews"][row]
        for name, row in (
            ("majority class", "majority"),
            ("frozen backbone, no prompt", "frozen"),
            ("PromptTuning, best step", "trained"),
        )
    },
    "best_step": 4,
    "validation": {"rank/accuracy": 0.75},
    "majority_f1": 0.25,
    "trained_parameters": 64,
    "total_parameters": 1_064,
    "resumed_from_step": 2,
    "seconds": 1.5,
}
FORMER_MIXTURE = FORMER | {
    "split": {"reviews": "test"},
    "scores": {"reviews": FORMER["scores"]},
}


def test_a_result_is_read_as_it_was_written(tmp_path):
    RESULT.write(epath.Path(tmp_path))
    assert Result.read(tmp_path) == RESULT


@pytest.mark.parametrize("content", [FORMER, FORMER_MIXTURE], ids=["one task", "mixture"])
def test_a_file_of_the_former_form_is_understood(tmp_path, content):
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert Result.read(tmp_path) == RESULT


def test_the_summary_is_beside_the_fields(tmp_path):
    RESULT.write(epath.Path(tmp_path))
    content = json.loads((tmp_path / "result.json").read_text())
    summary = {name: content[name] for name in RESULT.summary}
    assert summary == {
        "majority_f1": 0.25,
        "majority_accuracy": 0.5,
        "frozen_f1": 0.5,
        "frozen_accuracy": 0.625,
        "prompt_f1": 0.75,
        "prompt_accuracy": 0.75,
    }


def test_the_first_method_gives_the_numbers_of_a_task():
    assert RESULT.of_first_method()["reviews"]["trained"] == {"f1": 0.75, "accuracy": 0.75}
    assert of_first_method({"mean": 0.5}) == {"mean": 0.5}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"task": "reviews"}'])
def test_what_is_not_a_result_is_named(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json: not a result of `train`"):
        Result.read(tmp_path)


@pytest.mark.parametrize(
    ("names", "examples", "measures"),
    [
        (("rank/f1", "rank/accuracy", "generate/f1"), "1", True),
        (("rank/accuracy", "rank/f1", "generate/f1"), "1", False),
        (("rank/f1", "rank/accuracy"), "1", False),
        (("rank/f1", "rank/accuracy", "generate/f1"), "2", False),
    ],
)
def test_a_result_is_of_its_metrics_and_examples(names, examples, measures):
    result = dataclasses.replace(RESULT, examples={"reviews": "1"})
    majorities = {"reviews": dict.fromkeys(names, 0.5)}
    assert result.measures(majorities, {"reviews": examples}) is measures
    # An earlier version did not write the digests.
    assert RESULT.measures(majorities, {"reviews": "2"}) is (measures or examples == "2")
    assert not result.measures({"questions": majorities["reviews"]}, {"questions": "1"})
