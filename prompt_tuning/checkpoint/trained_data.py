"""What a training says of its data in a card, and whether other data agree with it."""

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.errors import UserError


def of_training(data: Any, settings: Mapping[str, Any], model: Mapping[str, Any]) -> TrainedWith:
    """What a card says of a training.

    Args:
      data: Its data, as `runs.data_protocol.Data`.
      settings: Settings of the method.
      model: `Config.of_model`.
    """
    return TrainedWith(
        settings=settings,
        labels=data.labels,
        tasks=tuple(data.tasks),
        lengths=dict(data.lengths),
        target_prefix=data.target_prefix,
        text_fields=dict(data.text_fields),
        vocabulary=data.vocabulary_fingerprint,
        model=model,
        bare_inputs=data.bare_inputs,
    )


def check_labels(
    words: Sequence[str],
    trained: Sequence[str],
    where: str,
    by_number: Callable[[], Mapping[str, Sequence[str]]],
) -> None:
    """Checks label words against those of a training; warns as `warn_of_untrained`.

    Args:
      words: Label words to answer with.
      trained: Label words of the training; empty if no card says them.
      where: What messages begin with.
      by_number: Returns the words of each task whose files give labels as numbers, which it may
        read; called if the order differs.

    Raises:
      UserError: If files give labels as numbers, and the words are in another order.
    """
    warn_of_untrained(words, trained, where)
    if _in_order(words, trained):
        return
    for task, of_task in by_number().items():
        if not _in_order(of_task, trained):
            raise UserError(
                f"CLASS_LABELS = {list(of_task)!r}: {where} was trained on {list(trained)!r}, "
                f"and the files of {task!r} give labels as numbers, which are indices into them; "
                "give the words in the order of the training, or set ALLOW_OTHER_SETTINGS = True "
                "if the numbers of these files mean other words"
            )


def warn_of_untrained(words: Sequence[str], trained: Sequence[str], where: str) -> None:
    """Warns of label words that a prompt was not trained on.

    Words of a subset, another language or a larger task may be meant, so they are not refused.

    Args:
      words: Label words to answer with.
      trained: Label words of the training; empty if no card says them.
      where: What the warning begins with.
    """
    if reason := untrained(words, trained):
        warnings.warn(f"{where}: {reason}", stacklevel=3)


def untrained(words: Sequence[str], trained: Sequence[str]) -> str:
    """What `warn_of_untrained` says of the words; "" if there is nothing to say."""
    known = set(map(_normal, trained))
    others = [word for word in words if _normal(word) not in known]
    if not trained or not others:
        return ""
    return (
        f"was trained on the label words {', '.join(map(repr, trained))}, not on "
        f"{', '.join(map(repr, others))}, which it is asked for"
    )


def check_text_fields(
    fields: Mapping[str, Sequence[str]], trained: Mapping[str, Sequence[str]], where: str
) -> None:
    """Checks that inputs are joined from the fields of the training; warns of other ones.

    Another data set may name its fields differently, so other names are not refused.

    Args:
      fields: Fields of each task of files that is answered on.
      trained: Those of the training.
      where: What messages begin with.

    Raises:
      UserError: If they are the same fields in another order.
    """
    trained = {plain_name(task): names for task, names in trained.items()}
    only = next(iter(trained.values())) if len(trained) == 1 else ()
    for task, now in fields.items():
        before = trained.get(plain_name(task), only)
        now, before = (tuple(map(_normal, names)) for names in (now, before))
        if not before or now == before or len(now) == len(before) == 1:
            continue
        if sorted(now) == sorted(before):
            raise UserError(
                f"TEXT_FIELD = {list(now)!r}: {where} was trained on {list(before)!r}, in this "
                "order; give them so, or set ALLOW_OTHER_SETTINGS = True"
            )
        warnings.warn(
            f"{where}: was trained on inputs of the fields {list(before)!r}, not of {list(now)!r}, "
            "whose names are part of the text",
            stacklevel=3,
        )


def check_inputs_end(bare: Sequence[str], trained: Sequence[str], where: str) -> None:
    """Checks that inputs have an end token if those of the training had one, and none if not.

    Args:
      bare: Tasks that are answered on whose inputs have none; texts that are given alone have one.
      trained: Those of the training.
      where: What the message begins with.

    Raises:
      UserError: If they differ.
    """
    if trained and not bare:
        raise UserError(
            f"{where}: was trained on inputs without an end token ({', '.join(trained)}), but "
            "these have one; evaluate it on tasks such as those"
        )
    if bare and not trained:
        raise UserError(
            f"{where}: was trained on inputs with an end token, but those of {', '.join(bare)} "
            "have none; register it with add_eos=True"
        )


def plain_name(task: str) -> str:
    """The name of a task without those of its variants: few examples, a sentinel."""
    return re.sub(r"(_sentinel)?(_\d+shot_seed\d+)?$", "", task)


def _in_order(words: Iterable[str], trained: Sequence[str]) -> bool:
    """Whether those words that were trained are in the order of the training."""
    order = list(map(_normal, trained))
    places = [order.index(word) for word in map(_normal, words) if word in order]
    return places == sorted(places)


def _normal(word: str) -> str:
    return unicodedata.normalize("NFC", word.strip())
