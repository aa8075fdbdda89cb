"""From the text that a model writes, or a target, to what the benchmarks' metrics compare.

SeqIO calls each with a text, its example and whether the text is the target. Raffel et al., 2020
(arXiv 1910.10683), section 2.4: a text that is not one of the label words is wrong.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning.data.catalogue.text_formats import HIDDEN
from prompt_tuning.errors import UserError

INVALID = -1  # index of a text that is no label
NO_SCORE = -1.0
TRUTH = ("False", "True")

# Words that tell noun phrases apart no more than capitals do.
_DETERMINERS = (
    "a an the this that these those my your his her our their whose some each every many much few "
    "which"
)


class Grouped(NamedTuple):
    """A value of a question that has several rows."""

    group: Hashable
    value: Any


def label_index(text: str, labels: Sequence[str], *, is_target: bool = False, **_: Any) -> int:
    """The label's number, or `INVALID`.

    Raises:
      UserError: for a target that is hidden.
    """
    text = text.strip()
    if is_target and text == HIDDEN:
        raise _not_public()
    return labels.index(text) if text in labels else INVALID


def multirc(text: str, *, example: Mapping[str, Any], is_target: bool = False) -> Grouped:
    """Whether the answer is right, grouped by question.

    Raises:
      UserError: for a target that is hidden.
    """
    question = (int(example["idx/paragraph"]), int(example["idx/question"]))
    return Grouped(question, label_index(text, TRUTH, is_target=is_target))


def record(text: str, *, example: Mapping[str, Any], is_target: bool = False) -> Grouped:
    """The predicted answer, or all right ones, grouped by query.

    Raises:
      UserError: for a target that is hidden.
    """
    query = (int(example["idx/passage"]), int(example["idx/query"]))
    if not is_target:
        return Grouped(query, text)
    answers = [answer.decode() for answer in example["answers"]]
    if not answers:
        raise _not_public()
    return Grouped(query, answers)


def score(text: str, *, is_target: bool = False, **_: Any) -> float:
    """A number; `NO_SCORE`, below the scale of STS-B, for what is none.

    Raises:
      UserError: for a target that is hidden.
    """
    try:
        number = float(text)
    except ValueError:
        number = NO_SCORE
    if is_target and number < 0:
        raise _not_public()
    return number if math.isfinite(number) else NO_SCORE


def wsc(text: str, *, example: Mapping[str, Any], is_target: bool = False) -> int:
    """Whether the text names the noun of the example: 0 or 1; of a target, the label.

    It does if the words of one, less determiners and capitals, are all among the other's, and
    both or neither have an apostrophe ("Bob" is not "Bob's dog"). Nothing said is `INVALID`.

    Raises:
      UserError: for a target that is hidden.
    """
    if is_target:
        label = int(example["label"])
        if label < 0:
            raise _not_public()
        return label
    said, noun = _content_words(text), _content_words(example["targets_pretokenized"].decode())
    if not said:
        return INVALID
    if any("'" in word for word in said) != any("'" in word for word in noun):
        return 0
    return int(said <= noun or noun <= said)


def _content_words(text: str) -> set[str]:
    return set(text.lower().split()) - set(_DETERMINERS.split())


def _not_public() -> UserError:
    return UserError("the targets of this split are not public, so there is nothing to measure")
