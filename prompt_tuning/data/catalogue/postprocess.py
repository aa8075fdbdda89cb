"""Postprocessors: from a generated text, or a target, to the value that the metrics compare.

SeqIO calls each with a text, its example and whether the text is the target. As in Raffel et al.,
2020 (arXiv 1910.10683), section 2.4, a text that is not a label word is wrong.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning.data.catalogue.text_formats import HIDDEN
from prompt_tuning.errors import UserError

INVALID = -1  # index of a text that is not a label
NO_SCORE = -1.0
TRUTH = ("False", "True")

# Words that, like capitals, do not distinguish noun phrases.
_DETERMINERS = (
    "a an the this that these those my your his her our their whose some each every many much few "
    "which"
)


class Grouped(NamedTuple):
    """The value of one example of a group, such as the answers to a question."""

    group: Hashable
    value: Any


def label_index(text: str, labels: Sequence[str], *, is_target: bool = False, **_: Any) -> int:
    """The number of a label, or `INVALID`.

    Raises:
      UserError: For a hidden target.
    """
    text = text.strip()
    if is_target and text == HIDDEN:
        raise _not_public()
    return labels.index(text) if text in labels else INVALID


def group_of(example: Mapping[str, Any]) -> tuple[int, ...]:
    """The question or query that an example is a part of; () if it stands alone."""
    keys = ("idx/paragraph", "idx/question"), ("idx/passage", "idx/query")
    found = [pair for pair in keys if set(pair) <= example.keys()]
    return tuple(int(example[key]) for key in found[0]) if found else ()


def multirc(text: str, *, example: Mapping[str, Any], is_target: bool = False) -> Grouped:
    """The number of the truth label of an answer, grouped by question.

    Raises:
      UserError: For a hidden target.
    """
    return Grouped(group_of(example), label_index(text, TRUTH, is_target=is_target))


def record(text: str, *, example: Mapping[str, Any], is_target: bool = False) -> Grouped:
    """The predicted answer, or all correct ones, grouped by query.

    Raises:
      UserError: For a hidden target.
    """
    query = group_of(example)
    if not is_target:
        return Grouped(query, text)
    answers = [answer.decode() for answer in example["answers"]]
    if not answers:
        raise _not_public()
    return Grouped(query, answers)


def score(text: str, *, is_target: bool = False, **_: Any) -> float:
    """The number in a text; `NO_SCORE`, which is below STS-B's scale, if it is not a number.

    Raises:
      UserError: For a hidden target.
    """
    try:
        number = float(text)
    except ValueError:
        number = NO_SCORE
    if is_target and number < 0:
        raise _not_public()
    return number if math.isfinite(number) else NO_SCORE


def wsc(text: str, *, example: Mapping[str, Any], is_target: bool = False) -> int:
    """Whether a text names the noun of the example, 0 or 1; for a target, the label.

    It does if the words of one, without determiners and ignoring case, are all among the other's,
    and both or neither have an apostrophe ("Bob" is not "Bob's dog"). A text without such words is
    `INVALID`.

    Raises:
      UserError: For a hidden target.
    """
    if is_target:
        label = int(example["label"])
        if label < 0:
            raise _not_public()
        return label
    predicted, noun = _content_words(text), _content_words(example["targets_pretokenized"].decode())
    if not predicted:
        return INVALID
    if any("'" in word for word in predicted) != any("'" in word for word in noun):
        return 0
    return int(predicted <= noun or noun <= predicted)


def _content_words(text: str) -> set[str]:
    return set(text.lower().split()) - set(_DETERMINERS.split())


def _not_public() -> UserError:
    return UserError("the targets of this split are not public, so they cannot be scored")
