"""Scores from the records of an experiment: by run, over tasks, over seeds.

A record is a cell of the grid, as JSON: {"experiment", "cell", "axes": {NAME: VALUE}, "status",
"results": [{"task", "split", "row": "trained" | "frozen" | "majority", "metrics"}],
"trained_parameters", "total_parameters", ...}.
"""

import collections
import dataclasses
import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
MEAN = "mean"


@dataclasses.dataclass(frozen=True)
class Score:
    """What a run, or a row that it is compared with, reached on a task.

    Attributes:
      axes: the cell's.
      task: that was evaluated; `MEAN` over several.
      value: mean of the task's metrics, in per cent.
      metric: their names, with "/" between them.
    """

    axes: Mapping[str, str]
    task: str
    value: float
    metric: str


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n runs; the deviation of one is 0."""

    mean: float
    sd: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), sd, len(values))


def scores(
    records: Iterable[Record], row: str = "trained", each_metric: bool = False
) -> list[Score]:
    """The scores of the cells that are done.

    Args:
      records: of one experiment.
      row: whose; of a method that trains nothing, "trained" is what it is evaluated as.
      each_metric: one for each metric, instead of their mean (Lester et al. 2021, section 3).
    """
    found = []
    for record in records:
        for result in record["results"] if record["status"] == "done" else ():
            if result["row"] != row:
                continue
            metrics = result["metrics"]
            parts = [{name: value} for name, value in metrics.items()] if each_metric else [metrics]
            found += [
                Score(
                    record["axes"],
                    result["task"],
                    100 * statistics.fmean(part.values()),
                    "/".join(part),
                )
                for part in parts
            ]
    return found


def over_tasks(found: Sequence[Score]) -> list[Score]:
    """The unweighted means over all tasks of these scores, of runs that differ in the task alone.

    Where a task's score is missing there is none: means over different tasks are not compared.
    """
    tasks = {score.task for score in found}
    groups = grouped(found, lambda score: _without(score.axes, "task"))
    return [
        Score(
            dict(axes),
            MEAN,
            statistics.fmean(score.value for score in group),
            "/".join(dict.fromkeys(score.metric for score in group)),
        )
        for axes, group in groups.items()
        if {score.task for score in group} == tasks
    ]


def over_seeds(found: Sequence[Score], key: Callable[[Score], Hashable]) -> dict[Any, Spread]:
    """Mean and deviation of the scores that have a key in common."""
    return {
        value: spread([score.value for score in group])
        for value, group in grouped(found, key).items()
    }


def grouped(found: Iterable[Score], key: Callable[[Score], Hashable]) -> dict[Any, list[Score]]:
    groups = collections.defaultdict(list)
    for score in found:
        groups[key(score)].append(score)
    return dict(groups)


def backbones(records: Iterable[Record]) -> dict[str, int]:
    """Parameters of the backbone by size: of its cells that add the fewest."""
    sizes: dict[str, int] = {}
    for record in records:
        if record["status"] == "done" and "size" in record["axes"]:
            size, total = record["axes"]["size"], record["total_parameters"]
            sizes[size] = min(total, sizes.get(size, total))
    return dict(sorted(sizes.items(), key=lambda item: item[1]))


def varying(records: Iterable[Record]) -> dict[str, list[str]]:
    """The values of each axis that has several, in order: numbers by size, words by letter."""
    values = collections.defaultdict(set)
    for record in records:
        for axis, value in record["axes"].items():
            values[axis].add(value)
    return {axis: sorted(own, key=natural) for axis, own in sorted(values.items()) if len(own) > 1}


def natural(text: str) -> tuple:
    """Sorts "lm10" before "lm100", and "5" before "20"."""
    return tuple(
        (part.isdecimal(), int(part) if part.isdecimal() else part)
        for part in re.split(r"(\d+)", text)
        if part
    )


def _without(axes: Mapping[str, str], *names: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in axes.items() if name not in names))
