"""A benchmark in one run: each of its tasks trained on its own, and the benchmark's score."""

from collections.abc import Mapping
from typing import Any

from prompt_tuning.evaluation.scores import most_frequent_name
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.evaluation.validation import Metrics, one_row
from prompt_tuning.methods.base import Method


def _table(
    data: EvalSet, rows: Mapping[str, Mapping[str, Metrics]], method: Method
) -> dict[str, Metrics]:
    """A task's rows of metrics by the names that they have in a table."""
    trained = f"{type(method).__name__}, best step"
    names = (most_frequent_name(data), "frozen backbone, no prompt", trained)
    return {name: row[data.task] for name, row in zip(names, rows.values(), strict=True)}


def _flat(rows: Mapping[str, Mapping[str, Metrics]]) -> dict[str, float]:
    """{"majority_accuracy", "frozen_accuracy", "prompt_accuracy", ...} by the first method; of
    several tasks {"majority_mean", ...}.
    """
    flat = {}
    for who, scores in rows.items():
        row = one_row(scores)
        first = next(iter(row)).partition("/")[0]
        for name, value in row.items():
            if name.partition("/")[0] == first:
                flat[f"{who}_{name.removeprefix(f'{first}/')}"] = value
    return flat


ROWS = ("majority", "frozen", "trained")


Results = Mapping[str, Metrics]


def by_task(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A run's metrics by its first evaluation method: {SeqIO task: {row: {metric: value}}}."""
    one = isinstance(result["split"], str)
    splits = {result["task"]: result["split"]} if one else result["split"]
    tables = {result["task"]: result["scores"]} if one else result["scores"]
    return {
        task: {
            "split": splits[task],
            "best_step": result["best_step"],
            **dict(zip(ROWS, map(of_first_method, table.values()), strict=True)),
        }
        for task, table in tables.items()
    }


def of_first_method(metrics: Metrics) -> dict[str, float]:
    """The metrics of the evaluation method that comes first, without its name."""
    first = next(iter(metrics)).partition("/")[0] + "/"
    return {k.removeprefix(first): v for k, v in metrics.items() if k.startswith(first)}
