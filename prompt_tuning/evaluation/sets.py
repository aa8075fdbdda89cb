"""Evaluation data in memory, and predictions on it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.decoding.model import RANK_MEMORY_GIB, rank_bytes
from prompt_tuning.errors import UserError

# From parameters named `targets` and `predictions`, by which SeqIO tells kinds of metric apart, to
# numbers by name.
MetricFn = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class EvalSet:
    """A split of a task, in memory.

    Attributes:
      task, split: Names of task and split.
      inputs: N input texts.
      targets: N target texts.
      encoder_input_tokens: [N, T] int32, the tokens of the inputs; 0 is padding.
      labels: K label words of a classification task; empty for other tasks.
      label_tokens: [K, L] int32, tokens of the labels, each with the target's prefix and its end
        token, then 0.
      target_length: Maximum number of tokens to generate.
      metric_fns: Metrics of the task.
      decode: Function from token ids to text, without the target's prefix.
      target_prefix: Text before every target, such as a sentinel; "" for none.
      notes: Lines that a run shows before it starts, such as the share of inputs that are cut.
      rank_memory_gib: Memory in which labels are scored together, on each device that rows are on.
      columns: Further columns of the N rows, by name; empty if none are kept.
      labels_by_number: Whether files give the labels as numbers, so that the order of the words
        counts; a function, since it may read them.
      text_fields: Fields of a file that the inputs are joined from; empty for other tasks.
      vocabulary: `transformer.vocabulary.fingerprint_of` its pieces; "" if unknown.
      tokenized: Inputs and the array of their tokens, as read; None if unknown.
      first_metric: Name of the first metric, by which steps are compared, once it was measured.

    Raises:
      UserError: If `rank_memory_gib` is not positive, or `inputs` are not those of the tokens.
    """

    task: str
    split: str
    inputs: Sequence[str]
    targets: Sequence[str]
    encoder_input_tokens: np.ndarray
    labels: Sequence[str]
    label_tokens: np.ndarray
    target_length: int
    metric_fns: Sequence[MetricFn]
    decode: Callable[[Sequence[int]], str]
    target_prefix: str = ""
    notes: Sequence[str] = ()
    rank_memory_gib: float = RANK_MEMORY_GIB
    columns: Sequence[Mapping[str, Any]] = ()
    labels_by_number: Callable[[], bool] = lambda: False
    text_fields: Sequence[str] = ()
    vocabulary: str = ""
    tokenized: tuple[Sequence[str], np.ndarray] | None = None
    first_metric: list[str] = dataclasses.field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        rank_bytes(self.rank_memory_gib)
        inputs, tokens = self.tokenized or (self.inputs, None)
        if tokens is self.encoder_input_tokens and list(inputs) != list(self.inputs):
            raise UserError(
                f"{self.task}: inputs were replaced, and encoder_input_tokens are still those of "
                "the former ones; replace both"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """A model's answers on an `EvalSet`.

    Attributes:
      texts: N predicted texts.
      scores: [N, K] log-probabilities of the labels; None for generated texts.
    """

    texts: Sequence[str]
    scores: np.ndarray | None = None
