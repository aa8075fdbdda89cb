"""The metric of the package's own tasks."""

from collections.abc import Sequence


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions equal to their target, up to surrounding white space: 0 to 1.

    Raises:
      ValueError: If there are no targets, or the numbers of targets and predictions differ.
    """
    if not targets:
        raise ValueError("accuracy needs at least one target")
    pairs = zip(targets, predictions, strict=True)
    equal = sum(target.strip() == prediction.strip() for target, prediction in pairs)
    return {"accuracy": equal / len(targets)}
