"""Predictions as JSON lines."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from prompt_tuning.checkpoint.files import renamed_when_done
from prompt_tuning.evaluate import Predictions


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


def write(
    path: epath.Path,
    examples: Iterable[dict[str, Any]],
    predictions: Predictions,
    labels: Sequence[str],
) -> None:
    """Writes `lines`, a JSON object each."""
    with renamed_when_done(path) as temporary, temporary.open("w") as file:
        for line in lines(examples, predictions, labels):
            file.write(json.dumps(line) + "\n")
