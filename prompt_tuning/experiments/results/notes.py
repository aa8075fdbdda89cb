"""What a reader of an experiment's table or figures would not see: lines below it."""

import itertools
import math
from collections.abc import Iterator, Sequence

from prompt_tuning.experiments.results import scores, tables
from prompt_tuning.experiments.results.scores import MEAN, Record
from prompt_tuning.experiments.results.tables import Table

_MOST = 4  # examples that a line names
_ROUNDING = 0.05  # of scores in a table, in per cent


def of(records: Sequence[Record], table: Table) -> list[str]:
    """Returns lines on numbers that are missing, not comparable, or not numbers.

    Args:
      records: Records of one experiment.
      table: Their table.
    """
    done = [record for record in records if record["status"] == "done"]
    return [*_of_counts(table), *_of_nan(done), *_of_baselines(done), *_of_versions(done)]


def _of_counts(table: Table) -> Iterator[str]:
    """Rows of fewer runs than others; votes and means over tasks are of other runs than single."""
    counts: dict[tuple[str | None, bool], dict[str, int]] = {}
    for labels, cells in table.rows:
        if labels.get("method") in tables.BASELINES.values():
            continue
        for task, metrics in cells.items():
            name = ", ".join(filter(None, (*labels.values(), task)))
            kind = labels.get("prompts"), task == MEAN
            counts.setdefault(kind, {})[name] = min(spread.n for spread in metrics.values())
    for of_kind in counts.values():
        most = max(of_kind.values())
        fewer = [f"{name} ({n})" for name, n in of_kind.items() if n < most]
        if fewer:
            yield f"fewer runs than the {most} of others: {_some(fewer)}"


def _of_nan(done: Sequence[Record]) -> Iterator[str]:
    found = [
        f"{name} of {result['task']}, {result['row']}, in {record['cell']}"
        for record in done
        for result in record["results"]
        for name, value in result["metrics"].items()
        if math.isnan(value)
    ]
    if found:
        yield f"not a number, and so are means with it: {_some(found)}"


def _of_baselines(done: Sequence[Record]) -> Iterator[str]:
    """Baselines that differ between the runs that share them, of which the first is shown."""
    for row, name in tables.BASELINES.items():
        values: dict[tuple[str, ...], list[float]] = {}
        for score in scores.scores(done, row, each_metric=True):
            axes = (score.axes.get(axis, "") for axis in tables.OF_BACKBONE)
            values.setdefault((*axes, score.task, score.metric), []).append(score.value)
        differing = [
            f"{', '.join(filter(None, key))} ({min(own):.1f} to {max(own):.1f})"
            for key, own in values.items()
            if max(own) - min(own) > _ROUNDING
        ]
        if differing:
            yield f"{name}: differs between runs, and the first is shown: {_some(differing)}"


def _of_versions(done: Sequence[Record]) -> Iterator[str]:
    versions = sorted({record["version"] for record in done if "version" in record})
    if len(versions) > 1:
        yield f"cells are of several versions of the package: {_some(versions)}"


def _some(names: Sequence[str]) -> str:
    more = f"; and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return "; ".join(itertools.islice(names, _MOST)) + more
