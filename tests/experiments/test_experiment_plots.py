"""Figures of experiments: what is drawn are the means and deviations of the records."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.experiments.results import plot, scores

PARAMETERS = {"small": 1_000, "large": 200_000}
SEEDS = ("0", "1", "2")


def value(*of: str) -> float:
    """Some score from 0 to 1, another for each cell."""
    return statistics.fmean(ord(letter) for letter in "".join(of)) % 7 / 7


def record(
    axes: dict[str, str],
    tasks: Sequence[str],
    metrics: Callable[[str], dict[str, float]],
) -> dict:
    results = [
        {"task": task, "split": "test", "row": row, "metrics": actual, "run": "train"}
        for task in tasks
        for row, actual in {
            "majority": dict.fromkeys(metrics(task), 0.5),
            "frozen": dict.fromkeys(metrics(task), 0.25),
            "trained": metrics(task),
        }.items()
    ]
    total = PARAMETERS.get(axes.get("size", ""), 1) + (axes.get("method") == "prompt_tuning") * 64
    about = {"experiment": "e", "cell": "-".join(axes.values()), "axes": axes, "status": "done"}
    return {**about, "results": results, "trained_parameters": 64, "total_parameters": total}


def grid(axis: str, values: Sequence[str]) -> list[dict]:
    """Two sizes, tasks "a" of one metric and "b" of two, three seeds."""
    cells = (
        {"size": size, axis: own, "task": task, "seed": seed}
        for size in PARAMETERS
        for own in values
        for task in "ab"
        for seed in SEEDS
    )
    return [
        record(cell, [cell["task"]], lambda task, cell=cell: metrics(task, *cell.values()))
        for cell in cells
    ]


def metrics(task: str, *of: str) -> dict[str, float]:
    return {"accuracy": value(*of)} | ({"f1": value("f1", *of)} if task == "b" else {})


def expected(task: str, *of: str) -> tuple[float, float]:
    """Mean and deviation over seeds of the mean of a task's metrics, in per cent."""
    runs = [100 * statistics.fmean(metrics(task, *of, task, seed).values()) for seed in SEEDS]
    return statistics.fmean(runs), statistics.stdev(runs)


def lines(axis) -> dict[str, list[tuple[float, float]]]:
    """The points of each line with a name."""
    return {
        line.get_label(): list(map(tuple, line.get_xydata()))
        for line in axis.lines
        if not line.get_label().startswith("_")
    }


def bars(axis) -> list[list[float]]:
    """Half the height of each error bar, line by line."""
    return [
        [(top - bottom) / 2 for (_, bottom), (_, top) in container.lines[2][0].get_segments()]
        for container in axis.containers
    ]


def test_scaling_of_methods():
    actual = plot.drawn(grid("method", ["model_tuning", "prompt_tuning"]))
    assert set(actual) == {"", "tasks"}
    a, b = actual["tasks"].axes[:2]
    assert (a.get_title(), b.get_title()) == ("a", "b")
    assert a.get_xscale() == b.get_xscale() == "log"
    for axis in (a, b):
        drawn, deviations = lines(axis), bars(axis)
        for i, method in enumerate(("model_tuning", "prompt_tuning")):
            points = [expected(axis.get_title(), size, method) for size in PARAMETERS]
            x = PARAMETERS.values()
            means = [(x, mean) for x, (mean, _) in zip(x, points, strict=True)]
            np.testing.assert_allclose(drawn[method.replace("_", " ")], means)
            assert deviations[i] == pytest.approx([sd for _, sd in points])
        assert [y for _, y in drawn["majority class"]] == [50, 50]
        assert [y for _, y in drawn["frozen backbone"]] == [25, 25]
    assert "mean ± sd, n = 3" in actual["tasks"].get_supylabel()


def test_mean_over_tasks():
    """The tasks' means first, then mean and deviation over seeds."""
    [axis] = plot.drawn(grid("method", ["model_tuning", "prompt_tuning"]))[""].axes
    for i, size in enumerate(PARAMETERS):
        runs = [
            100
            * statistics.fmean(
                statistics.fmean(metrics(task, size, "prompt_tuning", task, seed).values())
                for task in "ab"
            )
            for seed in SEEDS
        ]
        assert lines(axis)["prompt tuning"][i][1] == pytest.approx(statistics.fmean(runs))
        assert bars(axis)[1][i] == pytest.approx(statistics.stdev(runs))
    assert axis.get_title() == "mean of 2 tasks"
    assert axis.get_ylabel() == "score (%)\nmean ± sd, n = 3"


def test_a_cell_of_all_tasks():
    """Multi-task training is one run, measured on each task: a line beside those of single ones."""
    cells = [
        {"size": size, "method": "multitask", "task": "all", "seed": seed}
        for size in PARAMETERS
        for seed in SEEDS
    ]
    joint = [
        record(cell, "ab", lambda task, cell=cell: metrics(task, *{**cell, "task": task}.values()))
        for cell in cells
    ]
    actual = plot.drawn([*grid("method", ["model_tuning"]), *joint])
    for axis in actual["tasks"].axes[:2]:
        means = [expected(axis.get_title(), size, "multitask")[0] for size in PARAMETERS]
        assert [y for _, y in lines(axis)["multitask"]] == pytest.approx(means)
    a, b = (lines(axis)["multitask"] for axis in actual["tasks"].axes[:2])
    means = [(first + second) / 2 for (_, first), (_, second) in zip(a, b, strict=True)]
    assert [y for _, y in lines(actual[""].axes[0])["multitask"]] == pytest.approx(means)


def test_runs_without_all_tasks_are_in_no_mean():
    records = grid("method", ["model_tuning", "prompt_tuning"])
    partial = [r for r in records if (r["axes"]["task"], r["axes"]["seed"]) != ("a", "0")]
    whole = [r for r in records if r["axes"]["seed"] != "0"]
    drawn, wanted = (lines(plot.drawn(own)[""].axes[0]) for own in (partial, whole))
    assert drawn["prompt tuning"] == wanted["prompt tuning"]


def test_failed_cells_are_left_out():
    records = grid("method", ["model_tuning", "prompt_tuning"])
    failed = {"axes": {**records[0]["axes"], "seed": "9"}, "status": "failed", "results": []}
    wanted = lines(plot.drawn(records)[""].axes[0])
    assert lines(plot.drawn([*records, {**records[0], **failed}])[""].axes[0]) == wanted


def test_lengths_are_an_axis_and_lines():
    actual = plot.drawn(grid("length", ["100", "5", "20"]))
    assert set(actual) == {"", "tasks", "length", "length_tasks"}
    [by_size], [by_length] = actual[""].axes, actual["length"].axes
    assert list(lines(by_size))[:3] == ["5", "20", "100"]
    assert [x for x, _ in lines(by_length)["small"]] == [5, 20, 100]
    assert list(lines(by_length))[:2] == ["small", "large"]
    # The same points, the other way round.
    for i, (size, parameters) in enumerate(PARAMETERS.items()):
        for length, y in lines(by_length)[size]:
            assert lines(by_size)[f"{length:g}"][i] == pytest.approx((parameters, y))
    assert [y for _, y in lines(by_length)["frozen backbone"]] == [25, 25, 25]


@pytest.mark.parametrize(
    ("axis", "values", "of", "figures"),
    [
        ("pretraining", ["lm", "span"], "pretraining", []),
        ("words", ["lm", "span"], "size", [""]),
        ("adaptation_steps", ["0", "10"], "adaptation_steps", ["adaptation_steps"]),
        ("length", ["5", "20"], "size", [""]),
    ],
)
def test_a_baseline_is_drawn_where_all_lines_share_it(axis, values, of, figures):
    """In `figures` alone, if the frozen backbone depends on the axis `of`."""
    records = grid(axis, values)
    values = list(PARAMETERS) if of == "size" else values
    for record in records:
        [frozen] = [result for result in record["results"] if result["row"] == "frozen"]
        score = values.index(record["axes"][of]) / 4
        frozen["metrics"] = dict.fromkeys(frozen["metrics"], score)
    for name, figure in plot.drawn(records).items():
        if not name.endswith("tasks"):
            drawn = lines(figure.axes[0])
            assert "majority class" in drawn
            assert ("frozen backbone" in drawn) == (name in figures), name
            assert [y for _, y in drawn.get("frozen backbone", [(0, 0), (0, 25)])] == [0, 25]


@pytest.mark.parametrize(
    ("others", "labels"),
    [
        ({"init": ("uniform", "words")}, ["uniform", "words"]),
        ({"source": ("a", "b")}, ["a", "b"]),
        (
            {"size": ("small", "large"), "init": ("uniform", "words")},
            ["small, uniform", "small, words", "large, uniform", "large, words"],
        ),
        ({"size": ("small",)}, ["small"]),
    ],
)
def test_every_axis_but_the_seed_makes_lines(others, labels):
    axes = {"length": ("5", "10"), "seed": SEEDS, **others}
    cells = [dict(zip(axes, own, strict=True)) for own in itertools.product(*axes.values())]
    records = [
        record(cell, "a", lambda task, cell=cell: {"accuracy": value(*cell.values())})
        for cell in cells
    ]
    [axis] = plot.drawn(records)["length"].axes
    drawn = lines(axis)
    assert [label for label in drawn if "backbone" not in label and "class" not in label] == labels
    for own in itertools.product(*others.values()):
        means = [
            100 * statistics.fmean(value(length, seed, *own) for seed in SEEDS)
            for length in ("5", "10")
        ]
        assert [y for _, y in drawn[", ".join(own)]] == pytest.approx(means)
    assert axis.get_ylabel().endswith("n = 3")


def test_no_logarithm_of_zero():
    actual = plot.drawn(grid("adaptation_steps", ["0", "10", "100"]))
    assert actual["adaptation_steps"].axes[0].get_xscale() == "linear"


def test_one_run_has_no_error_bar():
    records = [r for r in grid("length", ["5", "20"]) if r["axes"]["seed"] == "0"]
    [axis] = plot.drawn(records)[""].axes
    segments = [s for line in axis.containers for s in line.lines[2][0].get_segments()]
    assert not any(map(len, segments))
    assert axis.get_ylabel() == "score (%)"


def shifted(method: str, seed: str, target: str) -> dict[str, float]:
    return {"accuracy": value("acc", method, seed, target), "f1": value("f1", method, seed, target)}


def shifts(seeds: Sequence[str]) -> list[dict]:
    return [
        record(
            {"source": "qqp", "method": method, "seed": seed},
            ["qqp", "mrpc"],
            lambda task, method=method, seed=seed: shifted(method, seed, task),
        )
        for method in ("prompt_tuning", "model_tuning")
        for seed in seeds
    ]


def test_a_single_run_has_no_error_bar_in_a_domain_shift():
    [axis] = plot.drawn(shifts(SEEDS[:1]))[""].axes
    (container,) = axis.containers
    segments = container.lines[2][0].get_segments()
    assert all(math.isnan(x) for segment in segments for x, _ in segment)


def test_domain_shift():
    """Differences to model tuning; their deviation is the root of the sum of both variances."""
    [axis] = plot.drawn(shifts(SEEDS))[""].axes
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows == [f"qqp to {t}, {m}" for t in ("mrpc", "qqp") for m in ("accuracy", "f1")]
    (container,) = axis.containers
    segments = container.lines[2][0].get_segments()
    for i, row in enumerate(rows):
        target, metric = row.removeprefix("qqp to ").split(", ")
        prompt, model = (
            [100 * shifted(method, seed, target)[metric] for seed in SEEDS]
            for method in ("prompt_tuning", "model_tuning")
        )
        delta = statistics.fmean(prompt) - statistics.fmean(model)
        sd = math.sqrt(statistics.variance(prompt) + statistics.variance(model))
        (left, y), (right, _) = segments[i]
        assert y == i
        assert (left, right) == pytest.approx((delta - sd, delta + sd))


def test_ensembles():
    prompts = [0.6, 0.8, 0.7]
    own = [
        {"task": "a", "split": "test", "row": row, "metrics": {"accuracy": x}, "run": str(x)}
        for x in prompts
        for row in ("frozen", "trained")
    ]
    joint = {**own[0], "row": "ensemble", "metrics": {"accuracy": 0.75}, "run": "vote"}
    axes = {"experiment": "e", "cell": "a", "axes": {"task": "a"}, "status": "done"}
    records = [{**axes, "results": [*own, joint], "trained_parameters": 1, "total_parameters": 1}]
    [axis] = plot.drawn(records)[""].axes
    heights = {name: y for name, [(_, y)] in lines(axis).items()}
    assert heights == pytest.approx({"average": 70, "best": 80, "ensemble": 75})
    assert axis.get_ylabel() == "accuracy (%)\nmean ± sd, n = 3"


def test_domain_shift_of_two_lengths():
    records = [
        record(
            {"source": "qqp", "method": method, "seed": seed, "length": length},
            ["mrpc"],
            lambda task, of=(method, seed, length): {"accuracy": value(*of)},
        )
        for method in ("prompt_tuning", "model_tuning")
        for seed in SEEDS
        for length in ("5", "20")
    ]
    [axis] = plot.drawn(records)[""].axes
    labels = [container.get_label() for container in axis.containers]
    assert labels == ["prompt tuning, 5", "prompt tuning, 20"]
    assert axis.get_xlabel().endswith("n = 3")


def test_tasks_side_by_side():
    cells = [r for r in grid("method", ["lora", "ia3"]) if r["axes"]["size"] == "small"]
    [axis] = plot.drawn(cells)[""].axes
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert ticks == ["a", "b, accuracy", "b, f1", "mean"]
    drawn = lines(axis)
    assert set(drawn) == {"lora", "ia3", "frozen backbone", "majority class"}
    assert drawn["lora"][0][1] == pytest.approx(expected("a", "small", "lora")[0])


def test_files(tmp_path):
    """As vectors and pixels."""
    paths = plot.write(grid("method", ["lora", "ia3"]), tmp_path)
    names = {"e.pdf", "e.png", "e_tasks.pdf", "e_tasks.png"}
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "e.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path):
    failed = [{**record({}, [], metrics), "status": "failed"}]
    for records in ([], failed):
        with pytest.raises(UserError, match="no cell is done"):
            plot.write(records, tmp_path)


@pytest.mark.parametrize(
    ("count", "said"),
    [(594_560, "0.6M"), (76_961_152, "77M"), (2_849_757_184, "2.8B"), (11_135_332_352, "11B")],
)
def test_sizes_are_said_by_their_parameters(count, said):
    """The ticks are the sizes; numbers of published T5s and of a small backbone."""
    records = [
        {**r, "total_parameters": count if r["axes"]["size"] == "small" else 9e9}
        for r in grid("method", ["lora", "ia3"])
    ]
    [axis] = plot.drawn(records)[""].axes
    labels = {label.get_text(): label.get_position()[0] for label in axis.get_xticklabels()}
    assert labels == {said: count, "9.0B": 9e9}


def test_natural_order():
    assert sorted(["lm100", "span", "lm10", "lm50"], key=scores.natural) == [
        "lm10",
        "lm50",
        "lm100",
        "span",
    ]
    assert sorted(["150", "5", "20"], key=scores.natural) == ["5", "20", "150"]
    rates = ["0.3", "3", "0.03", "1.0", "0.25"]
    assert sorted(rates, key=scores.natural) == ["0.03", "0.25", "0.3", "1.0", "3"]


def test_a_task_measured_twice_has_no_mean():
    def of(seed: str, *tasks: str) -> list[scores.Score]:
        return [scores.Score({"seed": seed, "task": each}, each, 50.0, "f1") for each in tasks]

    once, twice = of("0", "a", "b"), of("1", "a", "b", "a")
    with pytest.warns(UserWarning, match="'seed': '1'.* on a more often") as told:
        [mean] = scores.over_tasks([*once, *twice])
    assert (dict(mean.axes), len(told)) == ({"seed": "0"}, 1)
