"""What a model predicts, as JSON lines, and its metrics."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning.evaluation.scores import measure
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.evaluation.validation import Metrics
from prompt_tuning.runtime import files
from prompt_tuning.runtime.files import renamed_when_done


def lines(
    examples: Iterable[dict[str, Any]], predictions: Predictions, labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """An example's fields each, "prediction", and "scores" by label where there are any."""
    for i, (example, text) in enumerate(zip(examples, predictions.texts, strict=True)):
        line = example | {"prediction": text}
        if predictions.scores is not None:
            scores = predictions.scores[i].tolist()
            line["scores"] = dict(zip(labels, scores, strict=True))
        yield line


def write(folder: epath.Path, data: EvalSet, found: Mapping[str, Predictions]) -> Metrics:
    """Writes a split's predictions and metrics.

    Args:
      folder: for `TASK-SPLIT-METHOD.jsonl`, a line {"input", "target", "prediction"} an example, of
        each evaluation method, and `TASK-SPLIT-metrics.json`.
      data: the split.
      found: predictions by evaluation method.

    Returns:
      The metrics, named METHOD/METRIC.
    """
    name = f"{data.task}-{data.split}"
    metrics: dict[str, float] = {}
    for kind, own in found.items():
        texts = zip(data.inputs, data.targets, strict=True)
        examples = ({"input": text, "target": target} for text, target in texts)
        path = folder / f"{name}-{kind}.jsonl"
        with renamed_when_done(path) as temporary, temporary.open("w") as file:
            for line in lines(examples, own, data.labels):
                file.write(json.dumps(line) + "\n")
        metrics |= {f"{kind}/{metric}": value for metric, value in measure(data, own).items()}
    files.write_json(folder / f"{name}-metrics.json", metrics)
    return metrics
