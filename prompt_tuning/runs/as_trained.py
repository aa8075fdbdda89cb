"""What the card of a trained file decides: labels, tasks, lengths and sentinel of the training."""

from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint import trained_data
from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.data.unicode_form import composed
from prompt_tuning.errors import UserError, true_or_false
from prompt_tuning.methods.base import Method
from prompt_tuning.methods.prompt_file import prompt_start
from prompt_tuning.runs.data_protocol import Data


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
        `check_data`.
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
      UserError: As `trained_data.check_labels`, `check_text_fields` and `check_inputs_end`.
    """
    trained_data.check_labels(data.labels, training.labels, path, lambda: data.labels_by_number)
    trained_data.check_text_fields(data.text_fields, training.text_fields, path)
    trained_data.check_inputs_end(data.bare_inputs, training.bare_inputs, path)


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
