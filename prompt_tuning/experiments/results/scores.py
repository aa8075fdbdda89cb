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
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.runs.result_file import FROZEN, TRAINED

Record = Mapping[str, Any]
MEAN = "mean"
_MAIN_SPLITS = ("test", "validation")  # the first that is measured needs no name
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
      column: Name of the measurement: of the task, and what tells it from others of the task.
      again: Whether it measures the task again: by a later step, on another split, or by the cell
        of another task or mixture.
    """

    axes: Mapping[str, str]
    task: str
    value: float
    metric: str
    split: str = ""
    constant: bool = False
    column: str = ""
    again: bool = False


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
    records = [record for record in records if record["status"] == "done"]
    columns = Columns(records, row)
    result_scores = []
    for record in records:
        for result in record["results"]:
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
                    columns.name(record, result),
                    columns.is_again(record, result),
                )
                for part in parts
            ]
    return result_scores


class Columns:
    """Names of measurements, such that those of one name, in cells that differ in their seed alone,
    are repetitions of each other.

    The name is that of the task, with what tells the measurement from others of the task: a step
    that measures it again, a split other than "test" if that is measured too, and the cell's task
    if cells of several tasks measure this one.

    Args:
      records: Records of one experiment, of cells that are done.
      row: Row of the results that is shown; baselines have the names of what was trained.
    """

    def __init__(self, records: Sequence[Record], row: str) -> None:
        row = row if row == VALIDATION else TRAINED
        shown = [
            (record, result)
            for record in records
            for result in record["results"]
            if result["row"] == row
        ]
        splits = collections.defaultdict(set)
        for _, result in shown:
            splits[result["task"]].add(result["split"])
        self._main = {
            task: next((split for split in _MAIN_SPLITS if split in own), None)
            for task, own in splits.items()
        }
        self._later = {later for record in records for later in _later_steps(record, row)}
        sources = collections.defaultdict(set)
        for record, result in shown:
            sources[self._setting(record, result)].add(record["axes"].get("task"))
        self._sources = dict(sources)
        self._of_several = {name for (_, name), tasks in sources.items() if len(tasks) > 1}

    def name(self, record: Record, result: Mapping[str, Any]) -> str:
        own, source = self._own(result), record["axes"].get("task")
        if own not in self._of_several or source in (None, result["task"]):
            return own
        return f"{own}, {source}"

    def is_again(self, record: Record, result: Mapping[str, Any]) -> bool:
        """Whether another step, split or cell of the same setting measures the task itself.

        A mixture that is the only cell to measure a task does not measure it again.
        """
        if self._own(result) != result["task"]:
            return True
        sources = self._sources.get(self._setting(record, result), ())
        return len(sources) > 1 and record["axes"].get("task") != result["task"]

    def _setting(self, record: Record, result: Mapping[str, Any]) -> tuple[Hashable, str]:
        return _without(record["axes"], "seed", "task"), self._own(result)

    def _own(self, result: Mapping[str, Any]) -> str:
        task, split, run = result["task"], result["split"], result["run"]
        step = run if (task, run) in self._later else ""
        other_split = split if split != self._main.get(task, split) else ""
        return ", ".join(filter(None, (task, step, other_split)))


def _later_steps(record: Record, row: str) -> Iterator[tuple[str, str]]:
    """Yields (task, step) of steps that measure a task again; not of the prompts of an ensemble."""
    rows = {result["row"] for result in record["results"]}
    trained = {result["run"] for result in record["results"] if result["row"] == FROZEN}
    prompts = trained if ENSEMBLE in rows else set()
    steps = collections.defaultdict(list)
    for result in record["results"]:
        if result["row"] == row:
            steps[result["task"]].append(result["run"])
    for task, own in steps.items():
        yield from ((task, step) for step in own if step != own[0] and step not in prompts)


def shared(
    measured: Iterable[tuple[Mapping[str, str], Hashable, float]],
    axes: Sequence[str],
    droppable: Iterable[str],
) -> tuple[list[str], dict[Hashable, float | None]]:
    """Returns the axes that a baseline depends on, and its values by (key, value of each axis).

    Args:
      measured: The values of a cell's axes, what was measured, and the baseline's score.
      axes: Axes that it may depend on.
      droppable: Axes that are left out, one after the other, if the others determine the score.

    Returns:
      The axes that are left, and scores; None where cells that agree on these axes do not agree.
    """
    measured = list(measured)

    def values(axes: Sequence[str]) -> dict[Hashable, float | None]:
        by_key: dict[Hashable, list[float]] = {}
        for cell, key, value in measured:
            by_key.setdefault(key_on(axes, key, cell), []).append(value)
        return {key: own[0] if _agree(own) else None for key, own in by_key.items()}

    kept = list(axes)
    for axis in droppable:
        fewer = [other for other in kept if other != axis]
        if None not in values(fewer).values():
            kept = fewer
    return kept, values(kept)


def _agree(values: Sequence[float]) -> bool:
    """Whether values are the same but for the rounding of another machine; NaN is as NaN."""
    numbers = [value for value in values if not math.isnan(value)]
    if len(numbers) < len(values):
        return not numbers
    return math.isclose(min(numbers), max(numbers), rel_tol=1e-5)


def key_on(axes: Sequence[str], key: Hashable, cell: Mapping[str, str]) -> Hashable:
    return key, *(cell.get(axis) for axis in axes)


def over_tasks(single: Sequence[Score]) -> list[Score]:
    """Returns unweighted means over all tasks, of runs that differ in the task alone.

    What measures a task again is in no mean.
    Runs that lack a task have no mean: means over different tasks cannot be compared. Neither have
    runs that measure one more often than others, which would weigh more; a warning names it.
    """
    single = [score for score in single if not score.again]
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
            column=MEAN,
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
    """Returns a sort key that puts "lm10" before "lm100", and "5" before "20.5"."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return tuple((i % 2, float(part) if i % 2 else part) for i, part in enumerate(parts) if part)


def _without(axes: Mapping[str, str], *names: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in axes.items() if name not in names))
