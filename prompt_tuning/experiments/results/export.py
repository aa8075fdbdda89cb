"""The scores of single runs as JSON, for figures that are kept with the documentation."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning.experiments.results import scores
from prompt_tuning.experiments.results.scores import ENSEMBLE, Record
from prompt_tuning.experiments.results.tables import OF_BACKBONE
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
      majority    first metric of the most frequent answer; null if no run of the task measured it
      frozen      first metric of the frozen backbone; null likewise
      split       split that was measured
      constant    whether all answers are the same; null if unknown

    Several prompts of one cell have their step's name as "seed"; the row of their vote has
    "ensemble" as "method", and no seed.

    Args:
      records: Records of one experiment.
      row: Scores to show, "trained" or "validation".
    """
    done = [record for record in records if record["status"] == "done"]
    sizes, baselines = scores.backbones(done), _baselines(done)
    objects = []
    for record in done:
        axes = record["axes"]
        for result in record["results"]:
            if result["row"] not in (row, ENSEMBLE):
                continue
            vote = result["row"] == ENSEMBLE
            seed = "" if vote else axes.get("seed", result["run"])
            objects.append(
                {
                    **axes,
                    "parameters": sizes.get(axes.get("size", ""), record["total_parameters"]),
                    "task": result["task"],
                    "method": ENSEMBLE if vote else axes.get("method"),
                    "seed": int(seed) if seed.isdecimal() else None,
                    **result["metrics"],
                    "majority": baselines.get(_key(MAJORITY, result, {})),
                    "frozen": baselines.get(_key(FROZEN, result, axes)),
                    "split": result["split"],
                    "constant": result.get("constant"),
                }
            )
    return objects


def _baselines(records: Sequence[Record]) -> dict[Hashable, float]:
    """Returns the first metric of the baselines by `_key`, which many runs share."""
    values: dict[Hashable, float] = {}
    for record in records:
        for result in record["results"]:
            axes = record["axes"] if result["row"] == FROZEN else {}
            key = _key(result["row"], result, axes)
            values.setdefault(key, next(iter(result["metrics"].values())))
    return values


def _key(row: str, result: Mapping[str, Any], axes: Mapping[str, str]) -> Hashable:
    backbone = tuple(axes.get(name) for name in OF_BACKBONE)
    return row, result["task"], result["split"], backbone
