"""Metrics of a task: from target and predicted texts to named numbers."""

from collections.abc import Sequence


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target, white space around them aside: 0 to 1.

    Raises:
      ValueError: if there are no targets, or not as many predictions as targets.
    """
    if not targets:
        raise ValueError("accuracy of no targets")
    pairs = zip(targets, predictions, strict=True)
    equal = sum(target.strip() == prediction.strip() for target, prediction in pairs)
    return {"accuracy": equal / len(targets)}
