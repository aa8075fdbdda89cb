"""The table of an experiment: mean and deviation over seeds, a column a task, as Markdown."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.experiments.results import scores
from prompt_tuning.experiments.results.paper_numbers import PRINTED, Printed
from prompt_tuning.experiments.results.scores import MEAN, Record, Score, Spread

ENSEMBLE = "ensemble"
_OVER = {"seed", "task"}  # axes that are averaged over, or columns
# Axes that a frozen backbone depends on.
OF_BACKBONE = ("size", "pretraining", "adaptation_steps", "adaptation_percent")
_BASELINES = {"frozen": "frozen backbone", "majority": "majority class"}

Cells = dict[str, dict[str, Spread]]  # by task and metric


@dataclasses.dataclass(frozen=True)
class Table:
    """Scores in per cent.

    Attributes:
      labels: names of the columns that say what a row is.
      tasks: names of the others; of several also `MEAN`, if all are trained on.
      rows: what each is, and its scores by task and metric.
      parameters: how many each row trains; None where there is no one number.
    """

    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: tuple[tuple[Mapping[str, str], Cells], ...]
    parameters: tuple[int | None, ...]


def of(records: Sequence[Record]) -> Table:
    """The table of one experiment's records.

    Of an experiment with ensembles the rows are the mean and the best of the single prompts, and
    the ensemble; of any other, the most frequent answer and the plain backbone stand below.
    """
    each, joint = (list(_scores(records, each_metric)) for each_metric in (True, False))
    axes = list(dict.fromkeys(axis for score in joint for axis in score.axes))
    labels = tuple(axis for axis in axes if axis not in _OVER)
    tasks = tuple(dict.fromkeys(score.task for score in joint))
    if len(tasks) > 1 and "source" not in labels:  # one's own task and others' are no benchmark
        each += scores.over_tasks(joint)
        tasks = (*tasks, MEAN)
    rows: dict[tuple[str, ...], Cells] = {}
    groups = scores.grouped(each, lambda score: (_label(score, labels), score.task, score.metric))
    for (label, task, metric), group in groups.items():
        spread = scores.spread([score.value for score in group])
        rows.setdefault(label, {}).setdefault(task, {})[metric] = spread
    sizes = scores.backbones(records)
    in_order = sorted(rows, key=lambda label: [_rank(word, sizes) for word in label])
    named = tuple((dict(zip(labels, label, strict=True)), rows[label]) for label in in_order)
    return Table(labels, tasks, named, tuple(_parameters(records, labels, in_order)))


def markdown(table: Table, paper: str = "") -> str:
    """The table, with the paper's numbers of that name in it, or below where no task is shared."""
    rows = [
        [
            *(labels.get(name, "") for name in table.labels),
            *_texts(cells, table.tasks),
            "" if count is None else f"{count:,}",
        ]
        for (labels, cells), count in zip(table.rows, table.parameters, strict=True)
    ]
    printed = PRINTED.get(paper)
    shared = printed and any(set(table.tasks) & set(row) - {MEAN} for _, row in printed.rows)
    if printed and shared:
        rows += [[*row, ""] for row in _printed_rows(printed, table.labels, table.tasks)]
    head = [*table.labels, *table.tasks, "trained parameters"]
    lines = _markdown(head, len(table.labels), rows)
    if not printed:
        return lines
    if shared:
        return f"{lines}\n\npaper: {printed.source}"
    names = tuple(dict.fromkeys(name for labels, _ in printed.rows for name in labels))
    tasks = tuple(dict.fromkeys(task for _, cells in printed.rows for task in cells))
    below = _markdown([*names, *tasks], len(names), _printed_rows(printed, names, tasks))
    return f"{lines}\n\nThe paper's {printed.source}\n\n{below}"


def as_json(table: Table) -> dict[str, Any]:
    """{"rows": [{"labels", "trained_parameters", "scores"}]}, the scores by task and metric as
    {"mean", "sd", "n"}.
    """
    rows = [
        {
            "labels": dict(labels),
            "trained_parameters": count,
            "scores": {
                task: {metric: dataclasses.asdict(spread) for metric, spread in own.items()}
                for task, own in cells.items()
            },
        }
        for (labels, cells), count in zip(table.rows, table.parameters, strict=True)
    ]
    return {"rows": rows}


def _scores(records: Sequence[Record], each_metric: bool) -> Iterator[Score]:
    trained = scores.scores(records, "trained", each_metric)
    together = scores.scores(records, ENSEMBLE, each_metric)
    if together:
        yield from _with(trained, prompts="mean")
        groups = scores.grouped(trained, lambda s: (tuple(s.axes.items()), s.task, s.metric))
        best = (max(group, key=lambda score: score.value) for group in groups.values())
        yield from _with(best, prompts="best")
        yield from _with(together, prompts=ENSEMBLE)
        return
    yield from trained
    for row, name in _BASELINES.items():
        # Seeds and methods have them in common; those of the first will do.
        first: dict[Any, Score] = {}
        for score in scores.scores(records, row, each_metric):
            kept = {axis: score.axes[axis] for axis in OF_BACKBONE if axis in score.axes}
            axes = {axis: kept.get(axis, "") for axis in score.axes if axis not in _OVER}
            axes |= {"method": name}
            first.setdefault(
                (*axes.items(), score.task, score.metric), dataclasses.replace(score, axes=axes)
            )
        yield from first.values()


def _rank(word: str, sizes: Mapping[str, int]) -> tuple[bool, tuple]:
    """The order of rows: sizes by their parameters; what methods are compared with comes behind."""
    rank = ((True, sizes[word]),) if word in sizes else scores.natural(word)
    return word in _BASELINES.values(), rank


def _parameters(
    records: Sequence[Record], names: Sequence[str], labels: Sequence[tuple[str, ...]]
) -> Iterator[int | None]:
    found: dict[tuple[str, ...], set[int]] = {}
    for record in records:
        if record["status"] == "done":
            label = tuple(record["axes"].get(name, "") for name in names)
            found.setdefault(label, set()).add(record["trained_parameters"])
    for label in labels:
        counts = found.get(label, set())
        yield counts.pop() if len(counts) == 1 else None


def _with(found: Any, **axes: str) -> Iterator[Score]:
    for score in found:
        yield dataclasses.replace(score, axes={**score.axes, **axes})


def _label(score: Score, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(score.axes.get(name, "") for name in names)


def _texts(cells: Cells, tasks: Sequence[str]) -> list[str]:
    return [_text(cells[task]) if task in cells else "-" for task in tasks]


def _text(metrics: Mapping[str, Spread]) -> str:
    """Metrics by "/", and how many runs they are of."""
    counts = {spread.n for spread in metrics.values()}
    values = (
        f"{spread.mean:.1f}" + (f" ± {spread.sd:.1f}" if spread.n > 1 else "")
        for spread in metrics.values()
    )
    return f"{' / '.join(values)} ({', '.join(map(str, sorted(counts)))})"


def _printed_rows(
    printed: Printed, names: Sequence[str], tasks: Sequence[str]
) -> Iterator[list[str]]:
    for labels, cells in printed.rows:
        own = [labels.get(name, "") for name in names]
        own[0] = f"paper {own[0]}".rstrip()
        yield [*own, *(cells.get(task, "-") for task in tasks)]


def _markdown(head: Sequence[str], labels: int, rows: Sequence[Sequence[str]] | Any) -> str:
    rule = [*["---"] * labels, *["---:"] * (len(head) - labels)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
