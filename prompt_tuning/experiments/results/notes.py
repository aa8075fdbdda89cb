"""What a reader of an experiment's table or figures would not see: lines below it."""

import itertools
import math
from collections.abc import Iterator, Sequence

from prompt_tuning.experiments.results import tables
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
    return [*_of_counts(table), *_of_nan(done), *_of_baselines(table), *_of_versions(done)]


def _of_counts(table: Table) -> Iterator[str]:
    """Scores of fewer runs than others of the method, whose seeds the experiment chooses."""
    counts: dict[tuple[str | None, ...], dict[str, int]] = {}
    for labels, cells in table.rows:
        if tables.is_baseline(labels.get("method", "")):
            continue
        for task, metrics in cells.items():
            if task == MEAN:  # of the seeds that all tasks have
                continue
            name = ", ".join(filter(None, (*labels.values(), task)))
            kind = labels.get("method"), labels.get("prompts")
            counts.setdefault(kind, {})[name] = min(spread.n for spread in metrics.values())
    for of_kind in counts.values():
        most = max(of_kind.values())
        fewer = [f"{name} ({n})" for name, n in of_kind.items() if n < most]
        if fewer:
            yield f"fewer runs than the {most} of others of the method: {_some(fewer)}"


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


def _of_baselines(table: Table) -> Iterator[str]:
    """Baselines that differ between seeds, which should share them."""
    differing = [
        f"{', '.join(filter(None, (*labels.values(), task, name)))} (sd {spread.sd:.1f})"
        for labels, cells in table.rows
        for task, metrics in cells.items()
        for name, spread in metrics.items()
        if tables.is_baseline(labels.get("method", "")) and task != MEAN and spread.sd > _ROUNDING
    ]
    if differing:
        yield f"baselines that differ between seeds: {_some(differing)}"


def _of_versions(done: Sequence[Record]) -> Iterator[str]:
    versions = sorted({record["version"] for record in done if "version" in record})
    if len(versions) > 1:
        yield f"cells are of several versions of the package: {_some(versions)}"


def _some(names: Sequence[str]) -> str:
    more = f"; and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return "; ".join(itertools.islice(names, _MOST)) + more
