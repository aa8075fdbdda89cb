"""The scores of single runs as JSON, for figures that are kept with the documentation."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.experiments.results import scores
from prompt_tuning.experiments.results.scores import ENSEMBLE, Columns, Record
from prompt_tuning.runs.result_file import FROZEN, MAJORITY, TRAINED
from prompt_tuning.runtime.files import renamed_when_done, to_json


def write(path: epath.PathLike, objects: Sequence[Mapping[str, Any]]) -> None:
    """Writes objects as a JSON list, one per line."""
    with renamed_when_done(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(map(to_json, objects)) + "\n]\n")


def runs(records: Sequence[Record], row: str = TRAINED) -> list[dict[str, Any]]:
    """Returns one object per run and task of the cells that are done.

    Its keys are the axes, "size", "task", "method" and "seed" among them, and

      parameters  number of parameters of the backbone
      METRIC      score from 0 to 1, by its name, such as "accuracy"
      majority    first metric of the most frequent answer: the run's own, or what runs that differ
                  in seed, method and task alone agree on; null if there is none
      frozen      first metric of the frozen backbone, likewise
      split       split that was measured
      constant    whether all answers are the same; null if unknown

    "task" is the column of the table: a step that measures a task again has a name of its own.
    Several prompts of one cell have their step's name as "seed"; the row of their vote has
    "ensemble" as "method", and no seed.

    Args:
      records: Records of one experiment.
      row: Scores to show, "trained" or "validation".

    Raises:
      UserError: If an axis has the name of another key.
    """
    done = [record for record in records if record["status"] == "done"]
    sizes, columns = scores.backbones(done), Columns(done, row)
    baselines = {name: _Baseline(done, name) for name in (MAJORITY, FROZEN)}
    objects = []
    for record in done:
        axes = record["axes"]
        for result in record["results"]:
            if result["row"] not in (row, ENSEMBLE):
                continue
            vote = result["row"] == ENSEMBLE
            seed = "" if vote else axes.get("seed", result["run"])
            measured = {
                "parameters": sizes.get(axes.get("size", ""), record["total_parameters"]),
                **result["metrics"],
                **{name: baseline.of(record, result) for name, baseline in baselines.items()},
                "split": result["split"],
                "constant": result.get("constant"),
            }
            if taken := axes.keys() & measured.keys():
                raise UserError(
                    f"axis {min(taken)!r}: has the name of what each run's object says of its "
                    "score; rename the axis, which keeps the cells that are done"
                )
            named = {
                "task": columns.name(record, result),
                "method": ENSEMBLE if vote else axes.get("method"),
                "seed": int(seed) if seed.isdecimal() else None,
            }
            objects.append(axes | named | measured)
    return objects


class _Baseline:
    """The first metric of a baseline, which runs share that do not measure it.

    Args:
      records: Records of one experiment, of cells that are done.
      row: `MAJORITY` or `FROZEN`.
    """

    def __init__(self, records: Sequence[Record], row: str) -> None:
        self._columns = Columns(records, TRAINED)
        self._own = {
            (record["cell"], result["run"], self._key(record, result)): (
                record["axes"],
                next(iter(result["metrics"].values())),
            )
            for record in records
            for result in record["results"]
            if result["row"] == row
        }
        axes = list(dict.fromkeys(axis for record in records for axis in record["axes"]))
        measured = [(cell, key, value) for (*_, key), (cell, value) in self._own.items()]
        self._axes, self._shared = scores.shared(measured, axes, ("task", "seed", "method"))

    def of(self, record: Record, result: Mapping[str, Any]) -> float | None:
        key = self._key(record, result)
        if own := self._own.get((record["cell"], result["run"], key)):
            return own[1]
        return self._shared.get(scores.key_on(self._axes, key, record["axes"]))

    def _key(self, record: Record, result: Mapping[str, Any]) -> tuple[str, str]:
        return self._columns.name(record, result), result["split"]
