"""The table of an experiment: mean and deviation over seeds, one column per task, as Markdown."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.experiments.results import scores
from prompt_tuning.experiments.results.paper_numbers import PRINTED, Printed
from prompt_tuning.experiments.results.scores import ENSEMBLE, MEAN, Record, Score, Spread
from prompt_tuning.runs.result_file import TRAINED

_NOT_LABELS = {"seed", "task"}  # axes that are averaged over, or columns
BASELINES = {"frozen": "frozen backbone", "majority": "majority class"}

Cells = dict[str, dict[str, Spread]]  # by task and metric
_VALIDATION_NOTE = (
    "`*`: no test split; measured on the validation split, which also chose the best step of what "
    "was trained on the task."
)
_CONSTANT_NOTE = "constant: runs that give one and the same answer to all inputs."


@dataclasses.dataclass(frozen=True)
class Table:
    """Scores in per cent.

    Attributes:
      labels: Names of the columns that describe a row.
      tasks: Names of the other columns; the last one is `MEAN` if there are several tasks, all of
        them trained on.
      rows: The description of each row, and its scores by task and metric.
      parameters: Number of parameters that each row trains; None if it differs between its runs.
      on_validation: Tasks that are measured on their validation split.
    """

    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: tuple[tuple[Mapping[str, str], Cells], ...]
    parameters: tuple[int | None, ...]
    on_validation: frozenset[str] = frozenset()


def of(records: Sequence[Record], row: str = TRAINED) -> Table:
    """Returns the table of one experiment's records.

    An experiment with ensembles has the average and the best of the single prompts, and the
    ensemble, as rows. Below those of any other experiment come the most frequent answer and the
    frozen backbone, in a row for each value of the axes that they depend on.

    Args:
      records: Records of one experiment.
      row: Scores to show, "trained" or "validation".
    """
    each, joint = (list(_scores(records, row, each_metric)) for each_metric in (True, False))
    axes = list(dict.fromkeys(axis for score in joint for axis in score.axes))
    labels = tuple(axis for axis in axes if axis not in _NOT_LABELS)
    tasks = tuple(dict.fromkeys(score.column for score in joint))
    several = len({score.task for score in joint if not score.again}) > 1
    if several and "source" not in labels:  # tasks of other domains are no benchmark
        each += scores.over_tasks(joint)
        tasks = (*tasks, MEAN)
    rows: dict[tuple[str, ...], Cells] = {}
    groups = scores.grouped(each, lambda score: (_label(score, labels), score.column, score.metric))
    for (label, task, metric), group in groups.items():
        spread = scores.spread(group)
        rows.setdefault(label, {}).setdefault(task, {})[metric] = spread
    sizes = scores.backbones(records)
    in_order = sorted(rows, key=lambda label: [_rank(word, sizes) for word in label])
    named = tuple((dict(zip(labels, label, strict=True)), rows[label]) for label in in_order)
    splits = {(score.task, score.split) for score in joint if row == TRAINED}
    on_validation = {
        score.column
        for score in joint
        if (score.task, "validation") in splits and (score.task, "test") not in splits
    }
    parameters = tuple(_parameters(records, labels, in_order))
    return Table(labels, tasks, named, parameters, frozenset(on_validation))


def markdown(table: Table, paper: str = "") -> str:
    """Returns the table with the paper's numbers of that name: in it, or below it if it shares no
    task with them.
    """
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
    tasks = [f"{task}*" if task in table.on_validation else task for task in table.tasks]
    head = [*table.labels, *tasks, "trained parameters"]
    notes = [_VALIDATION_NOTE] if table.on_validation else []
    scored = (metrics for _, cells in table.rows for metrics in cells.values())
    if any(spread.constant for metrics in scored for spread in metrics.values()):
        notes.append(_CONSTANT_NOTE)
    lines = "\n\n".join([_markdown(head, len(table.labels), rows), *notes])
    if not printed:
        return lines
    if shared:
        return f"{lines}\n\npaper: {printed.source}"
    names = tuple(dict.fromkeys(name for labels, _ in printed.rows for name in labels))
    printed_tasks = tuple(dict.fromkeys(task for _, cells in printed.rows for task in cells))
    printed_rows = _printed_rows(printed, names, printed_tasks)
    below = _markdown([*names, *printed_tasks], len(names), printed_rows)
    return f"{lines}\n\nThe paper's {printed.source}\n\n{below}"


def _scores(records: Sequence[Record], row: str, each_metric: bool) -> Iterator[Score]:
    shown = scores.scores(records, row, each_metric)
    ensembles = scores.scores(records, ENSEMBLE, each_metric)
    if ensembles:
        yield from _with(shown, prompts="average")
        groups = scores.grouped(shown, lambda s: (tuple(s.axes.items()), s.column, s.metric))
        best = (max(group, key=_value_or_least) for group in groups.values())
        yield from _with(best, prompts="best")
        yield from _with(ensembles, prompts=ENSEMBLE)
        return
    yield from shown
    if row != TRAINED:
        return
    for baseline, name in BASELINES.items():
        kept = _axes_of(scores.scores(records, baseline, each_metric=True), shown)
        first: dict[Any, Score] = {}
        for score in scores.scores(records, baseline, each_metric):
            axes = {
                axis: value if axis in kept else ""
                for axis, value in score.axes.items()
                if axis not in _NOT_LABELS or axis in kept
            }
            of_method = f" ({axes['method']})" if axes.get("method") else ""
            axes["method"] = f"{name}{of_method}"
            first.setdefault(
                (*axes.items(), score.column, score.metric), dataclasses.replace(score, axes=axes)
            )
        yield from first.values()


def _value_or_least(score: Score) -> float:
    return -math.inf if math.isnan(score.value) else score.value


def _axes_of(baselines: Sequence[Score], shown: Sequence[Score]) -> list[str]:
    """Returns the axes that a baseline depends on: always the size, and another if scores differ,
    or if the baseline was not measured on some of its values.
    """
    axes = list(dict.fromkeys(axis for score in baselines for axis in score.axes))
    values = [{axis: {s.axes[axis] for s in of} for axis in axes} for of in (baselines, shown)]
    measured = {axis for axis in axes if values[0][axis] >= values[1][axis]} - {"size"}
    droppable = ["seed", "method", *(axis for axis in axes if axis in measured)]
    kept, _ = scores.shared(
        ((score.axes, (score.column, score.metric), score.value) for score in baselines),
        [axis for axis in axes if axis != "task"],
        dict.fromkeys(droppable),
    )
    return kept


def _rank(word: str, sizes: Mapping[str, int]) -> tuple[bool, tuple]:
    """Returns the sort key of a label: sizes by parameters, baselines after the methods."""
    rank = ((True, sizes[word]),) if word in sizes else scores.natural(word)
    return is_baseline(word), rank


def is_baseline(method: str) -> bool:
    return method.startswith(tuple(BASELINES.values()))


def _parameters(
    records: Sequence[Record], names: Sequence[str], labels: Sequence[tuple[str, ...]]
) -> Iterator[int | None]:
    by_label: dict[tuple[str, ...], set[int]] = {}
    for record in records:
        if record["status"] == "done":
            label = tuple(record["axes"].get(name, "") for name in names)
            by_label.setdefault(label, set()).add(record["trained_parameters"])
    for label in labels:
        counts = by_label.get(label, set())
        yield counts.pop() if len(counts) == 1 else None


def _with(given: Iterable[Score], **axes: str) -> Iterator[Score]:
    for score in given:
        yield dataclasses.replace(score, axes={**score.axes, **axes})


def _label(score: Score, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(score.axes.get(name, "") for name in names)


def _texts(cells: Cells, tasks: Sequence[str]) -> list[str]:
    return [_text(cells[task]) if task in cells else "-" for task in tasks]


def _text(metrics: Mapping[str, Spread]) -> str:
    """Returns metrics with "/" between them, the number of runs, and how many give one answer."""
    counts = {spread.n for spread in metrics.values()}
    constant = max(spread.constant for spread in metrics.values())
    mark = f"; {'all' if {constant} == counts else constant} constant" if constant else ""
    values = (
        f"{spread.mean:.1f}" + (f" ± {spread.sd:.1f}" if spread.n > 1 else "")
        for spread in metrics.values()
    )
    return f"{' / '.join(values)} ({', '.join(map(str, sorted(counts)))}{mark})"


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
