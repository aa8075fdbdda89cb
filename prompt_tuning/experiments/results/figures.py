"""Draws the paper's figures from the records of an experiment, as matplotlib Figures.

Error bars are one sample standard deviation to each side, over runs that differ in their seed.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.analysis import style
from prompt_tuning.experiments.results import scores, tables
from prompt_tuning.experiments.results.scores import MEAN, Record, Score, Spread

_TITLES = {
    "adaptation_percent": "LM adaptation (% of its steps)",
    "adaptation_steps": "LM-adaptation steps",
    "initializer": "initialisation",
    "length": "prompt length (vectors)",
    "pretraining": "pre-training",
    "size": "parameters of the backbone",
}
_NO_LINE = ("seed", "task")  # averaged over, and panels
_LEVELS = {"majority": "majority class", "frozen": "frozen backbone"}
_FULL, _PANELS = 6.6, 3  # inches, and panels side by side
TUNED = "model_tuning"
_BARS = {"capsize": 2, "elinewidth": 0.8}

Names = Mapping[str, Sequence[str]]
Line = Mapping[float, Spread]  # by x
Panel = tuple[Mapping[str, Line], Mapping[str, Line]]  # lines and levels, by label


def lines_of(records: Sequence[Record], x: str) -> Names:
    """Returns the axes, with their values, whose combinations are lines of a figure.

    Args:
      records: Records of one experiment.
      x: Axis along which the figure is drawn.
    """
    varying = scores.varying(records)
    names = {axis: values for axis, values in varying.items() if axis not in (x, *_NO_LINE)}
    if names.pop("size", None):
        return {"size": list(scores.backbones(records)), **names}
    return names


@style.styled
def scaling(records: Sequence[Record]) -> dict[str, Any]:
    """Draws scores against the backbone's parameters (the paper's figures 1 and 3).

    Returns:
      {"": the mean over tasks, "tasks": one panel per task}; of a single task the first alone.
      Points that no run has reached yet are left out.
    """
    return _figures(records, "size", scores.backbones(records), lines_of(records, "size"))


@style.styled
def against(records: Sequence[Record], axis: str) -> dict[str, Any]:
    """Draws scores against a numeric axis, such as the prompt's length, with one line per size and
    combination of the other axes.

    Returns:
      As `scaling`.
    """
    values = {value: float(value) for value in scores.varying(records)[axis]}
    only = list(scores.backbones(records))[:1]  # names the line if nothing else does
    names = lines_of(records, axis) or ({"size": only} if only else {})
    return _figures(records, axis, values, names)


@style.styled
def tasks(records: Sequence[Record]) -> Any:
    """Draws the rows of the experiment's table, task by task."""
    table = tables.of(records)
    varying = [
        name for name in table.labels if len({labels.get(name) for labels, _ in table.rows}) > 1
    ]
    groups = {
        ", ".join(_words(labels[name]) for name in varying if labels.get(name)): {
            _words(task if len(cells[task]) == 1 else f"{task}, {metric}"): spread
            for task in table.tasks
            for metric, spread in cells.get(task, {}).items()
        }
        for labels, cells in table.rows
    }
    return _beside(groups, _metric(scores.scores(records)))


@style.styled
def shift(records: Sequence[Record]) -> Any:
    """Draws how many points each method is above model tuning (the paper's tables 1 and 2).

    There is one row per target task and metric. Deviations are those of differences of independent
    runs; a single run has none.
    """
    varying = lines_of(records, "source")
    others = {
        "size": list(scores.backbones(records)) or [""],
        **{name: values for name, values in varying.items() if name != "method"},
    }

    def key(score: Score) -> tuple[str, str, tuple[str, ...]]:
        row = f"{_words(score.axes['source'])} to {_words(score.column)}, {_words(score.metric)}"
        return row, score.axes["method"], tuple(score.axes.get(name, "") for name in others)

    spreads = scores.over_seeds(scores.scores(records, each_metric=True), key)
    rows = list(dict.fromkeys(row for row, _, _ in sorted(spreads)))
    lines = [
        (method, own)
        for method in sorted({method for _, method, _ in spreads} - {TUNED})
        for own in itertools.product(*others.values())
        if any(own == drawn for _, _, drawn in spreads)
    ]
    figure, [[axis]] = style.figure(
        width=min(max(style.COLUMN, 2 + 0.055 * max(map(len, rows))), _FULL),
        height=0.9 + 0.16 * len(rows) * max(2, len(lines)),
    )
    for i, (method, own) in enumerate(lines):
        pairs = {
            row: (spreads[row, method, own], spreads[row, TUNED, own])
            for row in rows
            if {(row, method, own), (row, TUNED, own)} <= spreads.keys()
        }
        offset = (i - (len(lines) - 1) / 2) * 0.7 / len(lines)
        axis.errorbar(
            [new.mean - tuned.mean for new, tuned in pairs.values()],
            [rows.index(row) + offset for row in pairs],
            xerr=[
                math.hypot(new.sd, tuned.sd) if min(new.n, tuned.n) > 1 else math.nan
                for new, tuned in pairs.values()
            ],
            label=", ".join(_words(word) for word in (method, *own) if word),
            **_BARS | style.line(i) | {"linestyle": "none"},
        )
    axis.axvline(0, color=style.GRAY, lw=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    runs = _runs(spreads.values(), "difference ± sd")
    axis.set_xlabel(f"points above {_words(TUNED)}{runs}")
    style.legend(figure)
    return figure


def _figures(
    records: Sequence[Record], axis: str, x: Mapping[str, float], names: Names
) -> dict[str, Any]:
    levels = {
        label: _panels(records, row)
        for row, label in _LEVELS.items()
        if _is_of_x(scores.scores(records, row), axis, names)
    }
    panels = {
        task: (
            _lines(own, axis, x, names),
            {
                label: line
                for label, level in levels.items()
                for line in _lines(level.get(task, ()), axis, x, {}).values()
            },
        )
        for task, own in _panels(records, "trained").items()
    }
    metric = _metric(scores.scores(records))
    mean = panels.pop(MEAN, None)
    if mean is None:
        return {"": _drawn(panels, axis, names, metric)}
    drawn = {"tasks": _drawn(panels, axis, names, metric)}
    if mean[0]:
        count = len({score.task for score in scores.scores(records) if not score.again})
        drawn[""] = _drawn({f"mean of {count} tasks": mean}, axis, names, metric)
    return drawn


def _is_of_x(baselines: Sequence[Score], axis: str, names: Names) -> bool:
    """Whether all lines have the same baseline at each x, so that it is one line."""
    kept, _ = scores.shared(
        ((score.axes, score.column, score.value) for score in baselines),
        [axis, "seed", *names],
        names,
    )
    return kept == [axis, "seed"]


def _panels(records: Sequence[Record], row: str) -> dict[str, list[Score]]:
    """Returns scores by column; with several tasks, their means are the last, under `MEAN`."""
    single = scores.scores(records, row)
    panels = dict(sorted(scores.grouped(single, lambda score: score.column).items()))
    several = len({score.task for score in single if not score.again}) > 1
    return panels | ({MEAN: scores.over_tasks(single)} if several else {})


def _lines(
    panel: Sequence[Score], axis: str, x: Mapping[str, float], names: Names
) -> dict[str, Line]:
    """Returns spreads by x, for each combination of values of the axes `names`."""
    spreads = scores.over_seeds(
        panel, lambda score: (tuple(score.axes[name] for name in names), score.axes[axis])
    )
    labels = itertools.product(*names.values())
    return {
        ", ".join(map(_words, own)): {
            place: spreads[own, value] for value, place in x.items() if (own, value) in spreads
        }
        for own in labels
        if any(own == label for label, _ in spreads)
    }


def _drawn(panels: Mapping[str, Panel], axis: str, names: Names, metric: str) -> Any:
    from matplotlib.ticker import StrMethodFormatter

    rows, columns = math.ceil(len(panels) / _PANELS), min(len(panels), _PANELS)
    width = style.COLUMN if columns == 1 else _FULL * columns / _PANELS
    height = 2.7 if columns == 1 else 1.7 * rows + 0.7
    figure, grid = style.figure(width, height, rows, columns, sharex=True)
    labels = list(dict.fromkeys(label for label, _ in _each(panels)))
    for place, (title, (lines, levels)) in zip(grid.flat, panels.items(), strict=False):
        for label, line in lines.items():
            _line(place, line, style.line(labels.index(label)), label=label)
        for dashes, label in zip((":", (0, (6, 2))), _LEVELS.values(), strict=True):
            if level := levels.get(label):
                means = [value.mean for value in level.values()]
                place.plot(list(level), means, label=label, color=style.GRAY, ls=dashes, lw=1)
        place.set_title(_words(title))
        place.set_xscale(_scale(panels))
        place.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if axis == "size":
            x = sorted({x for _, line in _each(panels) for x in line})
            place.set_xticks(x, map(_parameters, x))
            place.set_xticks([], minor=True)
    for place in grid.flat[len(panels) :]:
        place.set_visible(False)
    spreads = [value for _, line in _each(panels) for value in line.values()]
    for place in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        place.set_xlabel(_title(axis))
        place.tick_params(labelbottom=True)
    label = f"{metric} (%){_runs(spreads)}"
    if columns == 1:
        grid[0, 0].set_ylabel(label)
    else:
        figure.supylabel(label, fontsize=8, ma="center")
    title = ", ".join(_title(name) for name in names if name not in ("method", "size"))
    style.legend(figure, title=title, ncols=2 if columns == 1 else 4)
    return figure


def _line(axis: Any, line: Mapping[Any, Spread], look: Mapping[str, Any], **named: Any) -> None:
    """Draws means, with error bars where there are several runs."""
    means = [value.mean for value in line.values()]
    sds = [value.sd if value.n > 1 else math.nan for value in line.values()]
    axis.plot(list(line), means, **look, **named)
    bars = {"ecolor": look["color"], "zorder": look["zorder"], **_BARS}
    axis.errorbar(list(line), means, sds, fmt="none", **bars)


def _beside(groups: Mapping[str, Mapping[str, Spread]], metric: str) -> Any:
    """Draws scores by label and task, those of a task next to each other."""
    tasks = list(dict.fromkeys(task for own in groups.values() for task in own))
    wide = 0.9 + 0.1 * len(tasks) * (len(groups) + 1)
    figure, [[axis]] = style.figure(min(max(style.COLUMN, wide), _FULL))
    for i, (label, own) in enumerate(groups.items()):
        offset = (i - (len(groups) - 1) / 2) * 0.7 / len(groups)
        line = {tasks.index(task) + offset: value for task, value in own.items()}
        _line(axis, line, style.line(i) | {"linestyle": "none"}, label=label)
    axis.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_xticks([i + 0.5 for i in range(len(tasks) - 1)], minor=True)
    axis.grid(visible=False, axis="x")
    axis.grid(which="minor", axis="x")
    axis.tick_params(which="both", axis="x", length=0)
    spreads = [value for own in groups.values() for value in own.values() if value.n > 1]
    axis.set_ylabel(f"{metric} (%){_runs(spreads)}")
    style.legend(figure)
    return figure


def _each(panels: Mapping[str, Panel]) -> Iterator[tuple[str, Line]]:
    for lines, _ in panels.values():
        yield from lines.items()


def _scale(panels: Mapping[str, Panel]) -> str:
    """Returns "log" if x spans a factor of ten."""
    x = [place for _, line in _each(panels) for place in line]
    return "log" if x and max(x) >= 10 * min(x) > 0 else "linear"


def _runs(spreads: Iterable[Spread], what: str = "mean ± sd") -> str:
    """Returns the words for an axis's error bars; "" if there are none."""
    counts = sorted({spread.n for spread in spreads} or {1})
    number = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f"\n{what}, n = {number}" if counts[-1] > 1 else ""


def _metric(drawn: Sequence[Score]) -> str:
    """Returns the name of the metric that all scores have in common, or "score"."""
    names = {score.metric for score in drawn}
    return _words(names.pop()) if len(names) == 1 else "score"


def _parameters(count: float) -> str:
    """Returns two digits and a unit: "0.6M", "77M", "11B"."""
    unit, letter = (1e9, "B") if count >= 1e9 else (1e6, "M")
    return f"{count / unit:.{1 if count < 10 * unit else 0}f}{letter}"


def _title(axis: str) -> str:
    return _TITLES.get(axis, _words(axis))


def _words(name: str) -> str:
    return name.replace("_", " ")
