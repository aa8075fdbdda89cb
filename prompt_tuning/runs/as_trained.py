"""What the card of a trained file decides: labels, tasks, lengths and sentinel of the training."""

import warnings
from collections.abc import Iterable, Mapping, Sequence

from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.data import label_words
from prompt_tuning.data.unicode_form import composed
from prompt_tuning.errors import UserError, true_or_false
from prompt_tuning.methods.base import Method
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.runs.loading import prompt_start
from prompt_tuning.serving.prompt_folder import plain_name


def as_trained(
    method: Method, data: Data, trained_file: str = "", allow_other_settings: bool = False
) -> tuple[Method, Data]:
    """Returns method and data as the leaves in a file were trained; says what it changes.

    Label words and tasks that the method depends on are those of the training, in its order; inputs
    are cut to its length, and targets begin with its sentinel. Without a card nothing changes.

    Args:
      method: Method of the leaves.
      data: Data to answer on.
      trained_file: File of trained leaves; "" if the method reads a prompt file, or none.
      allow_other_settings: Whether to leave everything as it is.

    Raises:
      UserError: If the placement of a prompt is another one, targets have a sentinel that the
        training did not have, a method with parameters for each label word has none for one, or as
        `check_text_fields`.
      CheckpointError: As `card.read`.
    """
    true_or_false("ALLOW_OTHER_SETTINGS", allow_other_settings)
    start = prompt_start(method)
    path = trained_file or (start.path if start else "")
    card = cards.read_for_answers(path) if path else None
    if card is None or allow_other_settings:
        return method, data
    placement = method.said("placement") or "prefix"
    if not trained_file and card.placement not in ("", placement):
        raise UserError(
            f"PROMPT_PLACEMENT = {_value(placement)}: {path} was trained as "
            f"{_value(card.placement)}; set PROMPT_PLACEMENT = {_value(card.placement)}"
        )
    training = card.trained_with
    if training is None:
        return method, data
    if data.target_prefix and data.target_prefix != training.target_prefix:
        raise UserError(
            f"SENTINEL_TARGETS = True: {path} was trained without; set SENTINEL_TARGETS = False"
        )
    if training.target_prefix and not data.target_prefix:
        print(f"{path}: targets begin with {training.target_prefix}, as in training", flush=True)
    check_data(data, training, path)
    # Outputs may be longer than those of the training; they end by themselves.
    longest = max(data.lengths["targets"], training.lengths.get("targets", 0))
    lengths = {"inputs": data.lengths["inputs"], **training.lengths, "targets": longest}
    if lengths != dict(data.lengths):
        print(f"{path}: TASK_FEATURE_LENGTHS = {lengths}, as in training", flush=True)
    if trained_file:
        method = _of_training(method, data, training, path)
    return method, data.as_trained(lengths, training.target_prefix)


def check_data(data: Data, training: TrainedWith, path: str) -> None:
    """Checks labels and inputs against those of a training, from the card of `path`.

    Raises:
      UserError: As `check_text_fields`; also if files give labels as numbers, and CLASS_LABELS has
        the words of the training in another order.
    """
    label_words.warn_of_untrained(data.labels, training.labels, path)
    check_text_fields(data.text_fields, training.text_fields, path)
    trained = list(map(composed, training.labels))
    if _in_order(map(composed, data.labels), trained):
        return  # words in the order of the training, before files are read again
    for task, words in data.labels_by_number.items():
        if not _in_order(map(composed, words), trained):
            raise UserError(
                f"CLASS_LABELS = {list(words)!r}: {path} was trained on {list(training.labels)!r}, "
                f"and the files of {task!r} give labels as numbers, which are indices into them; "
                "give the words in the order of the training, or set ALLOW_OTHER_SETTINGS = True "
                "if the numbers of these files mean other words"
            )


def _in_order(words: Iterable[str], trained: Sequence[str]) -> bool:
    """Whether those words that were trained are in the order of the training."""
    places = [trained.index(word) for word in words if word in trained]
    return places == sorted(places)


def check_text_fields(
    fields: Mapping[str, Sequence[str]], trained: Mapping[str, Sequence[str]], path: str
) -> None:
    """Checks that inputs are joined from the fields of the training; warns of other ones.

    Another data set may name its fields differently, so other names are not refused.

    Args:
      fields: Fields of each task of files that is answered on.
      trained: Those of the training, from the card of `path`.
      path: Path of the trained leaves.

    Raises:
      UserError: If they are the same fields in another order.
    """
    trained = {plain_name(task): names for task, names in trained.items()}
    only = next(iter(trained.values())) if len(trained) == 1 else ()
    for task, now in fields.items():
        before = trained.get(plain_name(task), only)
        now, before = (tuple(map(composed, names)) for names in (now, before))
        if not before or now == before or len(now) == len(before) == 1:
            continue
        if sorted(now) == sorted(before):
            raise UserError(
                f"TEXT_FIELD = {list(now)!r}: {path} was trained on {list(before)!r}, in this "
                "order; give them so, or set ALLOW_OTHER_SETTINGS = True"
            )
        warnings.warn(
            f"{path}: was trained on inputs of the fields {list(before)!r}, not of {list(now)!r}, "
            "whose names are part of the text",
            stacklevel=3,
        )


def _of_training(method: Method, data: Data, training: TrainedWith, path: str) -> Method:
    """The method with the labels and tasks of its training.

    Raises:
      UserError: If the data have a label word for which the method has no leaves.
    """
    trained = method.for_task(data.encode, training.labels, training.tasks)
    words = set(map(composed, training.labels))
    others = [word for word in data.labels if composed(word) not in words]
    if others and training.labels:
        fewer = method.for_task(data.encode, training.labels[:1], training.tasks)
        if fewer.settings != trained.settings:
            known = ", ".join(map(repr, training.labels))
            raise UserError(
                f"CLASS_LABELS has {others[0]!r}: {path} was trained on {known} alone, and its "
                "method has parameters for each word; leave the other words out"
            )
    return trained


def _value(placement: str) -> str:
    """A placement as it is set: a name in quotes, or a position."""
    return placement if placement.isdigit() else repr(placement)
