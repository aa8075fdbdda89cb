"""The tables of experiments: means and deviations over seeds, ensembles, the paper's numbers."""

import math
import statistics

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.experiments.results import export, notes, scores, tables
from prompt_tuning.experiments.results.paper_numbers import PRINTED


def record(axes: dict, results: list, parameters: int = 20) -> dict:
    return {
        "experiment": "e",
        "cell": "-".join(axes.values()),
        "axes": axes,
        "status": "done",
        "results": results,
        "trained_parameters": parameters,
        "total_parameters": 1000,
    }


def result(task: str, row: str = "trained", **metrics: float) -> dict:
    return {"task": task, "split": "test", "row": row, "metrics": metrics, "run": "train"}


def rows(text: str) -> list[list[str]]:
    return [
        [word.strip() for word in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


@pytest.fixture
def scaling() -> list[dict]:
    """Two seeds of one method and size; a seed of another method has one task of two only."""
    scores = {("0", "rte"): 0.5, ("1", "rte"): 0.7, ("0", "cb"): 0.8, ("1", "cb"): 0.4}
    own = [
        record(
            {"seed": seed, "size": "s", "method": "prompt_tuning", "task": task},
            [
                result(task, "majority", accuracy=0.25),
                result(task, "frozen", accuracy=0.3),
                result(task, accuracy=value, **({"f1": value - 0.2} if task == "cb" else {})),
            ],
        )
        for (seed, task), value in scores.items()
    ]
    axes = {"seed": "0", "size": "s", "method": "model_tuning", "task": "rte"}
    return [*own, record(axes, [result("rte", accuracy=0.9)], parameters=1000)]


def test_means_and_deviations(scaling):
    text = tables.markdown(tables.of(scaling))
    # Of seed 0 the mean over tasks is (50 + (80 + 60) / 2) / 2, of seed 1 (70 + (40 + 20) / 2) / 2.
    deviation = statistics.stdev([60.0, 50.0])
    assert rows(text) == [
        ["size", "method", "rte", "cb", "mean", "trained parameters"],
        ["---", "---", "---:", "---:", "---:", "---:"],
        ["s", "model_tuning", "90.0 (1)", "-", "-", "1,000"],
        [
            "s",
            "prompt_tuning",
            "60.0 ± 14.1 (2)",
            "60.0 ± 28.3 / 40.0 ± 28.3 (2)",
            f"55.0 ± {deviation:.1f} (2)",
            "20",
        ],
        ["s", "frozen backbone", "30.0 (1)", "30.0 (1)", "30.0 (1)", ""],
        ["s", "majority class", "25.0 (1)", "25.0 (1)", "25.0 (1)", ""],
    ]


def test_what_a_table_does_not_show(scaling):
    """Means of fewer runs, baselines that differ, and cells of another version."""
    assert notes.of(scaling[:4], tables.of(scaling[:4])) == []
    assert notes.of(scaling, tables.of(scaling)) == []  # one seed of another method
    failed = {**scaling[0], "status": "failed", "results": []}
    two = [failed, *scaling[1:4]]
    assert notes.of(two, tables.of(two)) == [
        "fewer runs than the 2 of others of the method: s, prompt_tuning, rte (1)"
    ]
    scaling[1]["results"][1]["metrics"]["accuracy"] = 0.5
    old = [{**line, "version": str(i % 2)} for i, line in enumerate(scaling[:4])]
    assert notes.of(old, tables.of(old)) == [
        "baselines that differ between seeds: s, frozen backbone, rte, accuracy (sd 14.1)",
        "cells are of several versions of the package: 0; 1",
    ]


@pytest.mark.parametrize("values", [(math.nan, 0.5), (0.5, math.nan), (math.nan, math.nan)])
def test_a_score_that_is_not_a_number(values):
    axes = [{"seed": str(seed), "method": "lora", "task": "sts"} for seed in range(2)]
    records = [
        record(own, [result("sts", pearson=value)]) for own, value in zip(axes, values, strict=True)
    ]
    table = tables.of(records)
    assert rows(tables.markdown(table))[2] == ["lora", "nan ± nan (2)", "20"]
    [note] = notes.of(records, table)
    assert note.startswith("not a number, and so are means with it: pearson of sts, trained, in ")
    vote = record(
        {"method": "lora", "task": "sts"},
        [
            *(result("sts", pearson=value) for value in values),
            result("sts", "ensemble", pearson=0.5),
        ],
    )
    best = "nan (1)" if all(map(math.isnan, values)) else "50.0 (1)"
    assert rows(tables.markdown(tables.of([vote])))[3][2] == best


def test_a_run_on_all_tasks_stands_with_the_others(scaling):
    axes = {"seed": "0", "size": "s", "method": "multitask", "task": "all"}
    together = record(axes, [result("rte", accuracy=0.4), result("cb", accuracy=0.6)])
    actual = {
        tuple(row[:2]): row[2:5] for row in rows(tables.markdown(tables.of([*scaling, together])))
    }
    assert actual["s", "multitask"] == ["40.0 (1)", "60.0 (1)", "50.0 (1)"]


def test_the_only_measurements_of_a_method_have_a_mean_beside_a_method_of_both_kinds():
    both = [result("rte", accuracy=0.4), result("cb", accuracy=0.6)]
    axes = {"seed": "0", "method": "prompt"}
    of_cells = [
        ({**axes, "task": "rte"}, [result("rte", accuracy=0.9)]),
        ({**axes, "task": "cb"}, [result("cb", accuracy=0.7)]),
        ({**axes, "task": "all"}, both),
        ({**axes, "method": "multitask", "task": "all"}, both),
    ]
    single = scores.scores([record(*cell) for cell in of_cells])
    means = {mean.axes["method"]: mean.value for mean in scores.over_tasks(single)}
    assert means == pytest.approx({"prompt": 80.0, "multitask": 50.0})


def trained(task: str, accuracy: float, run: str = "train", split: str = "test") -> list[dict]:
    """The results of a run of `train`, with its baselines."""
    own = {"majority": 0.25, "frozen": 0.5, "trained": accuracy}
    return [
        {**result(task, row, accuracy=value), "run": run, "split": split}
        for row, value in own.items()
    ]


def measured(task: str, accuracy: float, run: str, split: str = "test") -> dict:
    """The result of a run of `eval`."""
    return {**result(task, accuracy=accuracy), "run": run, "split": split}


MEASUREMENTS = {  # results of two seeds by the values of other axes; columns of the table
    "another split": (
        {(): ([*trained("rte", 0.9), measured("rte", 0.8, "again", "validation")],) * 2},
        {"rte": "90.0 ± 0.0 (2)", "rte, again, validation": "80.0 ± 0.0 (2)"},
    ),
    "a later step": (
        {(): ([*trained("rte", 0.9), measured("rte", 0.8, "again")],) * 2},
        {"rte": "90.0 ± 0.0 (2)", "rte, again": "80.0 ± 0.0 (2)"},
    ),
    "the same step on another split in other cells": (
        {
            (("method", "a"),): (trained("rte", 0.9),) * 2,
            (("method", "b"),): ([measured("rte", 0.8, "design", "validation")],) * 2,
        },
        {"rte": "90.0 ± 0.0 (2)", "rte, validation": "-"},
    ),
    "a later step beside another task": (
        {
            (): (
                [*trained("rte", 0.9), *trained("cb", 0.7), measured("rte", 0.8, "again")],
                [*trained("rte", 0.7), *trained("cb", 0.7), measured("rte", 0.4, "again")],
            )
        },
        {
            "rte": "80.0 ± 14.1 (2)",
            "cb": "70.0 ± 0.0 (2)",
            "rte, again": "60.0 ± 28.3 (2)",
            "mean": "75.0 ± 7.1 (2)",
        },
    ),
    "first steps of two methods": (
        {
            (("method", "a"),): (trained("rte", 0.9),) * 2,
            (("method", "b"),): ([measured("rte", 0.8, "design")],) * 2,
        },
        {"rte": "90.0 ± 0.0 (2)"},
    ),
    "a task with validation alone": (
        {(): (trained("rte", 0.9, split="validation"),) * 2},
        {"rte*": "90.0 ± 0.0 (2)"},
    ),
    "cells of two tasks that measure a third": (
        {
            (("task", "a"),): ([*trained("a", 0.9), measured("rte", 0.8, "shift")],) * 2,
            (("task", "b"),): ([*trained("b", 0.7), measured("rte", 0.2, "shift")],) * 2,
        },
        {
            "a": "90.0 ± 0.0 (2)",
            "rte, a": "80.0 ± 0.0 (2)",
            "b": "70.0 ± 0.0 (2)",
            "rte, b": "20.0 ± 0.0 (2)",
            "mean": "80.0 ± 0.0 (2)",
        },
    ),
    "a mixture beside its tasks": (
        {
            (("task", "a"),): (trained("a", 0.9),) * 2,
            (("task", "b"),): (trained("b", 0.7),) * 2,
            (("task", "both"),): ([*trained("a", 0.5), *trained("b", 0.3)],) * 2,
        },
        {
            "a": "90.0 ± 0.0 (2)",
            "b": "70.0 ± 0.0 (2)",
            "a, both": "50.0 ± 0.0 (2)",
            "b, both": "30.0 ± 0.0 (2)",
            "mean": "80.0 ± 0.0 (2)",
        },
    ),
    "a mixture that measures one of two tasks": (
        {
            (("task", "a"),): (trained("a", 0.9),) * 2,
            (("task", "b"),): (trained("b", 0.7),) * 2,
            (("task", "b_and_c"),): (trained("b", 0.1),) * 2,
        },
        {
            "a": "90.0 ± 0.0 (2)",
            "b": "70.0 ± 0.0 (2)",
            "b, b_and_c": "10.0 ± 0.0 (2)",
            "mean": "80.0 ± 0.0 (2)",
        },
    ),
    "a later step of a mixture": (
        {
            (("task", "a"),): (trained("a", 0.9),) * 2,
            (("task", "b"),): (trained("b", 0.7),) * 2,
            (("task", "both"),): ([*trained("a", 0.5), measured("a", 0.1, "later")],) * 2,
        },
        {
            "a": "90.0 ± 0.0 (2)",
            "b": "70.0 ± 0.0 (2)",
            "a, both": "50.0 ± 0.0 (2)",
            "a, later": "10.0 ± 0.0 (2)",
            "mean": "80.0 ± 0.0 (2)",
        },
    ),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_only_seeds_are_averaged(name):
    cells, expected = MEASUREMENTS[name]
    records = [
        record({"seed": str(seed), **dict(axes)}, own)
        for axes, of_seeds in cells.items()
        for seed, own in enumerate(of_seeds)
    ]
    head, _, first, *_ = rows(tables.markdown(tables.of(records)))
    actual = dict(zip(head, first, strict=True))
    assert {name: actual[name] for name in head if name in expected or ", " in name} == expected
    columns = {column.rstrip("*") for column in expected} - {"mean"}
    assert {each["task"] for each in export.runs(records)} == columns


BASELINES = {  # axes of cells, with their frozen and majority scores; rows of the table
    "by the label words": (
        [
            ({"seed": "0", "words": "sentiment"}, 0.5, 0.6),
            ({"seed": "1", "words": "sentiment"}, 0.5, 0.6),
            ({"seed": "0", "words": "sport"}, 0.2, 0.0),
        ],
        [
            ["sentiment", "frozen backbone", "50.0 (1)"],
            ["sentiment", "majority class", "60.0 (1)"],
            ["sport", "frozen backbone", "20.0 (1)"],
            ["sport", "majority class", "0.0 (1)"],
        ],
    ),
    "the same": (
        [({"seed": seed, "words": word}, 0.5, 0.6) for seed in "01" for word in ("a", "b")],
        [["", "frozen backbone", "50.0 (1)"], ["", "majority class", "60.0 (1)"]],
    ),
    "by the seed": (
        [({"seed": "0", "words": "a"}, 0.5, 0.4), ({"seed": "1", "words": "a"}, 0.5, 0.6)],
        [["", "frozen backbone", "50.0 (1)"], ["", "majority class", "50.0 ± 14.1 (2)"]],
    ),
    "by the method": (
        [({"seed": "0", "method": "a"}, 0.5, 0.4), ({"seed": "0", "method": "b"}, 0.6, 0.4)],
        [
            ["frozen backbone (a)", "50.0 (1)"],
            ["frozen backbone (b)", "60.0 (1)"],
            ["majority class", "40.0 (1)"],
        ],
    ),
    "not measured": (
        [({"seed": "0", "words": "a"}, 0.5, 0.4), ({"seed": "0", "words": "b"}, None, None)],
        [["a", "frozen backbone", "50.0 (1)"], ["a", "majority class", "40.0 (1)"]],
    ),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_of_each_setting(name):
    cells, expected = BASELINES[name]
    records = [
        record(
            axes,
            [
                result("rte", accuracy=0.9),
                *(
                    result("rte", row, accuracy=value)
                    for row, value in (("frozen", frozen), ("majority", majority))
                    if value is not None
                ),
            ],
        )
        for axes, frozen, majority in cells
    ]
    shown = [row[:-1] for row in rows(tables.markdown(tables.of(records)))[2:]]
    assert [row for row in shown if row[-2].startswith(("frozen", "majority"))] == expected
    own = [(each["frozen"], each["majority"]) for each in export.runs(records)]
    assert own == [(frozen, majority) for _, frozen, majority in cells]


def test_failed_cells_are_left_out(scaling):
    failed = {**scaling[0], "status": "failed", "results": []}
    assert tables.of([failed, *scaling[1:]]).rows[1][1]["rte"]["accuracy"].n == 1


def test_an_ensemble_beside_its_prompts():
    singles = {"rte": (0.5, 0.6, 0.7), "cb": (0.8, 0.7, 0.9)}
    votes = {"rte": 0.65, "cb": 0.9}
    records = [
        record(
            {"size": "s", "task": task},
            [
                *(result(task, accuracy=value) for value in singles[task]),
                result(task, "ensemble", accuracy=votes[task]),
            ],
        )
        for task in singles
    ]
    actual = rows(tables.markdown(tables.of(records), "ensembles"))
    assert [row[:5] for row in actual[2:]] == [
        ["s", "average", "60.0 ± 10.0 (3)", "80.0 ± 10.0 (3)", "70.0 (1)"],
        ["s", "best", "70.0 (1)", "90.0 (1)", "80.0 (1)"],
        ["s", "ensemble", "65.0 (1)", "90.0 (1)", "77.5 (1)"],
        ["paper", "average", "92.6", "99.3", "90.5"],
        ["paper", "best", "93.5", "100", "91.0"],
        ["paper", "ensemble", "93.5", "100", "91.3"],
    ]


def test_printed_numbers_of_other_tasks_stand_below():
    axes = {"seed": "0", "method": "prompt_tuning", "source": "sst2"}
    results = [result("sst2", accuracy=0.9), result("mpqa", accuracy=0.5)]
    text = tables.markdown(tables.of([record(axes, results)]), "domain_shift_qa")
    ours, paper = text.split("\n\nThe paper's table 1: F1, trained on SQuAD\n\n")
    assert rows(ours)[0] == ["method", "source", "sst2", "mpqa", "trained parameters"]
    assert rows(paper)[2][:3] == ["paper model_tuning", "94.9 ± 0.2", "54.3 ± 3.7"]


def test_means_of_the_printed_ensembles():
    """The paper's last row is the mean of those above, which checks what was copied."""
    for _, cells in PRINTED["ensembles"].rows:
        own = [float(value) for task, value in cells.items() if task != "mean"]
        assert len(own) == 8
        # Of MultiRC, CB and ReCoRD the paper prints one metric of the two that it averages.
        assert statistics.fmean(own) == pytest.approx(float(cells["mean"]), abs=2.5)


def test_runs_as_json(scaling):
    """One object per run and task, with the baselines of the task and of the backbone."""
    last = scaling[-1]
    last["axes"] |= {"task": "cb"}
    last["results"] = [{**result("cb", accuracy=0.9), "constant": True}]
    objects = export.runs(scaling)
    assert len(objects) == len(scaling)
    assert objects[0] == {
        "size": "s",
        "parameters": 1000,
        "task": "rte",
        "method": "prompt_tuning",
        "seed": 0,
        "accuracy": 0.5,
        "majority": 0.25,
        "frozen": 0.3,
        "split": "test",
        "constant": None,
    }
    assert objects[2] | {"accuracy": 0.8, "f1": pytest.approx(0.6)} == objects[2]
    assert objects[-1] | {"majority": 0.25, "frozen": 0.3, "constant": True} == objects[-1]


def test_ensembles_as_json():
    prompts = [{**result("rte", accuracy=value / 10), "run": str(value)} for value in range(3)]
    vote = {**result("rte", "ensemble", accuracy=0.5), "run": "vote"}
    axes = {"size": "s", "method": "prompt_tuning", "task": "rte"}
    objects = export.runs([record(axes, [*prompts, vote])])
    assert [(o["method"], o["seed"], o["accuracy"]) for o in objects] == [
        *(("prompt_tuning", value, value / 10) for value in range(3)),
        ("ensemble", None, 0.5),
    ]


@pytest.mark.parametrize("axis", ["split", "parameters", "accuracy", "frozen", "constant"])
def test_an_axis_named_like_a_score_is_refused(axis):
    own = record({"size": "s", axis: "5"}, [result("rte", accuracy=0.5)])
    with pytest.raises(UserError, match=f"axis '{axis}': has the name of.*rename the axis"):
        export.runs([own])


def test_json_has_one_object_per_line(tmp_path):
    export.write(tmp_path / "e.json", [{"a": 1}, {"a": 2}])
    assert (tmp_path / "e.json").read_text() == '[\n{"a": 1},\n{"a": 2}\n]\n'


def test_constant_answers_are_marked():
    records = [
        record({"seed": str(seed), **axes}, [{**result("rte", accuracy=0.5), "constant": seed < n}])
        for n, method in ((1, "prompt_tuning"), (2, "lora"))
        for seed in range(2)
        for axes in [{"method": method, "task": "rte"}]
    ]
    text = tables.markdown(tables.of(records))
    assert [row[1] for row in rows(text)[2:]] == [
        "50.0 ± 0.0 (2; all constant)",
        "50.0 ± 0.0 (2; 1 constant)",
    ]
    assert text.endswith("one and the same answer to all inputs.")


def test_tasks_measured_on_validation_are_marked():
    axes = {"seed": "0", "method": "lora"}
    results = [{**result("rte", accuracy=0.5), "split": "validation"}, result("cb", accuracy=0.5)]
    text = tables.markdown(tables.of([record(axes, results)]))
    assert rows(text)[0][1:4] == ["rte*", "cb", "mean"]
    assert "\n\n`*`: no test split" in text


def test_scores_on_validation():
    """With the baselines of the test split left out."""
    axes = {"seed": "0", "method": "lora", "task": "rte"}
    validated = {**result("rte", "validation", accuracy=0.75), "split": "validation"}
    records = [record(axes, [result("rte", "frozen", accuracy=0.1), validated])]
    assert rows(tables.markdown(tables.of(records, "validation")))[2:] == [
        ["lora", "75.0 (1)", "20"]
    ]
    assert export.runs(records, "validation")[0]["accuracy"] == 0.75


def test_sizes_are_sorted_by_their_parameters():
    sizes = {"xxl": 11_000, "small": 77, "base": 247}
    records = [
        {
            **record({"size": size, "task": "rte"}, [result("rte", accuracy=0.5)]),
            "total_parameters": n,
        }
        for size, n in sizes.items()
    ]
    actual = [labels["size"] for labels, _ in tables.of(records).rows]
    assert actual == ["small", "base", "xxl"]
