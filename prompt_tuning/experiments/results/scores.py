"""Scores from the records of an experiment: of single runs, over tasks, over seeds.

A record is a line of `table.jsonl`: what `experiments.records` describes, with {"experiment",
"cell", "axes": {NAME: VALUE}}.
"""

import collections
import dataclasses
import math
import re
import statistics
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
MEAN = "mean"
VALIDATION, ENSEMBLE = "validation", "ensemble"  # rows, besides `runs.result_file.ROWS`


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of a run, or of a baseline, on a task.

    Attributes:
      axes: Values of the cell's axes.
      task: Task that was evaluated; `MEAN` over several.
      value: Mean of the task's metrics, in per cent.
      metric: Names of the metrics, with "/" between them.
      split: Split that was evaluated; "" over several tasks.
      constant: Whether all answers are the same.
    """

    axes: Mapping[str, str]
    task: str
    value: float
    metric: str
    split: str = ""
    constant: bool = False


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n runs; the deviation of a single run is 0.

    Both are NaN if the score of a run is, such as the correlation of constant answers.
    `constant` is the number of runs whose answers are all the same.
    """

    mean: float
    sd: float
    n: int
    constant: int = 0


def spread(runs: Sequence[Score]) -> Spread:
    values = [score.value for score in runs]
    is_number = not any(map(math.isnan, values))  # else `stdev` raises
    sd = (statistics.stdev(values) if is_number else math.nan) if len(values) > 1 else 0.0
    constant = sum(score.constant for score in runs)
    return Spread(statistics.fmean(values), sd, len(values), constant)


def scores(
    records: Iterable[Record], row: str = "trained", each_metric: bool = False
) -> list[Score]:
    """Returns the scores of the cells that are done.

    Args:
      records: Records of one experiment.
      row: Row of the results to score. That of a method that trains nothing is "trained" too.
      each_metric: Whether to return one score per metric, instead of their mean (Lester et al.,
        2021, section 3).
    """
    result_scores = []
    for record in records:
        for result in record["results"] if record["status"] == "done" else ():
            if result["row"] != row:
                continue
            metrics = result["metrics"]
            parts = [{name: value} for name, value in metrics.items()] if each_metric else [metrics]
            result_scores += [
                Score(
                    record["axes"],
                    result["task"],
                    100 * statistics.fmean(part.values()),
                    "/".join(part),
                    result["split"],
                    bool(result.get("constant")),
                )
                for part in parts
            ]
    return result_scores


def over_tasks(single: Sequence[Score]) -> list[Score]:
    """Returns unweighted means over all tasks, of runs that differ in the task alone.

    Runs that lack a task have no mean: means over different tasks cannot be compared. Neither have
    runs that measure one more often than others, which would weigh more; a warning names it.
    """
    tasks = {score.task for score in single}
    groups = grouped(single, lambda score: _without(score.axes, "task"))
    for axes, group in [*groups.items()]:
        counts = collections.Counter((score.task, score.metric) for score in group)
        (often, most), *_, (_, fewest) = 2 * counts.most_common()
        if most > fewest:
            warnings.warn(
                f"{dict(axes)} was measured on {often[0]} more often than on others: no mean over "
                "tasks",
                stacklevel=2,
            )
            del groups[axes]
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


def over_seeds(single: Sequence[Score], key: Callable[[Score], Hashable]) -> dict[Any, Spread]:
    """Returns mean and deviation of the scores that share a key."""
    return {value: spread(group) for value, group in grouped(single, key).items()}


def grouped(single: Iterable[Score], key: Callable[[Score], Hashable]) -> dict[Any, list[Score]]:
    groups = collections.defaultdict(list)
    for score in single:
        groups[key(score)].append(score)
    return dict(groups)


def backbones(records: Iterable[Record]) -> dict[str, int]:
    """Returns the parameters of the backbone by size: those of the cells that add the fewest."""
    sizes: dict[str, int] = {}
    for record in records:
        if record["status"] == "done" and "size" in record["axes"]:
            size, total = record["axes"]["size"], record["total_parameters"]
            sizes[size] = min(total, sizes.get(size, total))
    return dict(sorted(sizes.items(), key=lambda item: item[1]))


def varying(records: Iterable[Record]) -> dict[str, list[str]]:
    """Returns the values of each axis that has more than one, in natural order."""
    values = collections.defaultdict(set)
    for record in records:
        for axis, value in record["axes"].items():
            values[axis].add(value)
    return {axis: sorted(own, key=natural) for axis, own in sorted(values.items()) if len(own) > 1}


def natural(text: str) -> tuple:
    """Returns a sort key that puts "lm10" before "lm100", and "5" before "20"."""
    return tuple(
        (part.isdecimal(), int(part) if part.isdecimal() else part)
        for part in re.split(r"(\d+)", text)
        if part
    )


def _without(axes: Mapping[str, str], *names: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in axes.items() if name not in names))
