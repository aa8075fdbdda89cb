"""Files of a model's predictions and metrics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning.evaluation.scores import (
    constant_answers,
    constant_notes,
    majority,
    majority_share,
    measure_each,
    most_frequent_name,
)
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.evaluation.table import table
from prompt_tuning.evaluation.validation import Metrics
from prompt_tuning.runtime import files
from prompt_tuning.runtime.files import renamed_when_done


def lines(
    examples: Iterable[dict[str, Any]], predictions: Predictions, labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields the fields of each example, "prediction", and "scores" by label if there are any."""
    for i, (example, text) in enumerate(zip(examples, predictions.texts, strict=True)):
        line = example | {"prediction": text}
        if predictions.scores is not None:
            scores = predictions.scores[i].tolist()
            line["scores"] = dict(zip(labels, scores, strict=True))
        yield line


def write(folder: epath.Path, data: EvalSet, by_method: Mapping[str, Predictions]) -> Metrics:
    """Writes the predictions and metrics of a split.

    `TASK-SPLIT-METHOD.jsonl` has one line {"input", "target", "prediction"} per example, for each
    evaluation method; `TASK-SPLIT-metrics.json` has the metrics of all methods, for classification
    "majority_class", the share of the most frequent label, and "constant_answers" by method, if
    there are any.

    Args:
      folder: Folder to write to.
      data: Split of a task.
      by_method: Predictions by evaluation method.

    Returns:
      The metrics, named METHOD/METRIC.
    """
    name = f"{data.task}-{data.split}"
    for method, predicted in by_method.items():
        texts = zip(data.inputs, data.targets, strict=True)
        examples = ({"input": text, "target": target} for text, target in texts)
        path = folder / f"{name}-{method}.jsonl"
        with renamed_when_done(path) as temporary, temporary.open("wb") as file:
            for line in lines(examples, predicted, data.labels):
                file.write(files.json_line(line))
    metrics = measure_each(data, by_method)
    about_answers: dict[str, Any] = {"majority_class": majority_share(data)} if data.labels else {}
    if constant := constant_answers(by_method):
        about_answers["constant_answers"] = constant
    files.write_json(folder / f"{name}-metrics.json", {**metrics, **about_answers})
    return metrics


def show(data: EvalSet, name: str, metrics: Metrics, by_method: Mapping[str, Predictions]) -> None:
    """Prints the metrics of a split beside those of its most frequent target.

    Args:
      data: Split of a task.
      name: Name of what was measured.
      metrics: From `write`.
      by_method: Predictions by evaluation method.
    """
    print(f"{data.task}, {data.split} split, {len(data.targets)} examples:")
    print(table({most_frequent_name(data): majority(data, list(by_method)), name: metrics}))
    for line in constant_notes(data.task, by_method):
        print(line)
