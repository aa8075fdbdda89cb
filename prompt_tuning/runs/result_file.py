"""`result.json`: what a training run measured, for people, the suite and the experiments."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.validation import Metrics, one_row
from prompt_tuning.runtime import files

NAME = "result.json"
# What each task is measured with: its most frequent target, the frozen backbone without the method,
# and the trained leaves of the best step.
MAJORITY, FROZEN, TRAINED = ROWS = ("majority", "frozen", "trained")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training run measured.

    Attributes:
      task: Name of the task or mixture that the run trained on.
      splits: Split that each task was measured on, by task.
      scores: Metrics by task, row (of `ROWS`) and METHOD/METRIC.
      best_step: Step with the best validation score.
      validation: Validation metrics at `best_step`; of several tasks {"mean": score}.
      trained_parameters: Number of trained parameters.
      total_parameters: Number of parameters of the model, the method's included.
      resumed_from_step: Step that the last process started from.
      seconds: Seconds that the last process took.
      distinct_answers: Number of different answers that the trained leaves give by the first
        evaluation method, by task; where it is 1, the score is that of a constant.
      examples: Digest of the examples that each task was measured on, by task; empty in a file of
        an earlier version.
    """

    task: str
    splits: Mapping[str, str]
    scores: Mapping[str, Mapping[str, Metrics]]
    best_step: int
    validation: Metrics
    trained_parameters: int
    total_parameters: int
    resumed_from_step: int
    seconds: float
    distinct_answers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    examples: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def summary(self) -> dict[str, float]:
        """One number per row: `majority_METRIC`, `frozen_METRIC` and `prompt_METRIC` by the first
        evaluation method; of several tasks `majority_mean`, `frozen_mean` and `prompt_mean`.
        """
        numbers = {}
        for row, prefix in ((MAJORITY, "majority"), (FROZEN, "frozen"), (TRAINED, "prompt")):
            metrics = one_row({task: rows[row] for task, rows in self.scores.items()})
            for name, value in of_first_method(metrics).items():
                numbers[f"{prefix}_{name}"] = value
        return numbers

    def of_first_method(self) -> dict[str, dict[str, Metrics]]:
        """Metrics by task and row, of the first evaluation method alone and without its name."""
        return {
            task: {row: of_first_method(metrics) for row, metrics in rows.items()}
            for task, rows in self.scores.items()
        }

    def measures(self, majorities: Mapping[str, Metrics], examples: Mapping[str, str]) -> bool:
        """Whether these metrics of these examples were measured, in this order of the metrics.

        Args:
          majorities: Metrics of the most frequent target, by task.
          examples: Digests of the examples, by task.
        """
        names = {task: [*metrics] for task, metrics in majorities.items()}
        measured = {task: [*rows[MAJORITY]] for task, rows in self.scores.items()}
        return measured == names and self.examples in ({}, examples)

    @property
    def content(self) -> dict[str, Any]:
        """The content of `result.json`: the fields, and the numbers of `summary`."""
        return dataclasses.asdict(self) | self.summary

    def write(self, folder: epath.Path) -> None:
        """Writes `result.json` to a run's folder."""
        files.write_json(folder / NAME, self.content)

    @staticmethod
    def exists(folder: epath.PathLike) -> bool:
        """Whether a run's folder has a `result.json`."""
        return (epath.Path(folder) / NAME).exists()

    @classmethod
    def read(cls, folder: epath.PathLike) -> "Result":
        """Reads the `result.json` in a run's folder, in its present or its former form.

        Raises:
          UserError: If the file is not a result.
        """
        path = epath.Path(folder) / NAME
        try:
            content = _in_present_form(files.from_json(path.read_text()))
            return cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a result of `train` ({error!r}); delete it to run `train` again"
            ) from error


def of_first_method(metrics: Metrics) -> dict[str, float]:
    """Keeps the metrics of the evaluation method that comes first, without its name.

    A name that belongs to no method, as "mean" does, stands for itself.
    """
    first, slash, _ = next(iter(metrics)).partition("/")
    prefix = first + slash
    return {k.removeprefix(prefix) or k: v for k, v in metrics.items() if k.startswith(prefix)}


def _in_present_form(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Converts the content of a file from before `Result`.

    Such a file has `split`: a name, with `scores` by row, if the run measured one task, else both
    by task. Its rows are in the order of `ROWS`, under the names that they have in a printed table.
    """
    content = {"distinct_answers": {}, "examples": {}, **content}
    if "splits" in content:
        return content
    task, split, scores = content["task"], content["split"], content["scores"]
    if isinstance(split, str):
        split, scores = {task: split}, {task: scores}
    by_row = {name: dict(zip(ROWS, table.values(), strict=True)) for name, table in scores.items()}
    return {**content, "splits": split, "scores": by_row}
