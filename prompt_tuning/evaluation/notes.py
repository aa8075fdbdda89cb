"""The lines that every command shows on the texts that it cuts, or that no model can read."""

from collections.abc import Mapping

MOST_CUT = 0.01  # share of texts that are cut, above which a run warns
MOST_UNKNOWN = 0.01  # share of pieces of the inputs that are unknown, above which a run warns
OF_TRAINING = "the length of the training"  # for `cut_note`, where no setting can raise it


def cut_note(where: str, setting: str, counts: Mapping[str, tuple[int, int, int]]) -> str:
    """A line on how many texts a setting cuts, which is a warning above 1 %.

    Args:
      where: Name of the texts.
      setting: Name of the setting, or `OF_TRAINING`.
      counts: Number of texts that are cut, of all, and of tokens to which they are, by what they
        are.
    """
    parts = " and ".join(
        f"{cut:,} of {all_of:,} {name} ({100 * cut / all_of:.3g} %) to {length} tokens"
        for name, (cut, all_of, length) in counts.items()
    )
    line = f"{where}: {setting} cuts {parts}"
    if all(cut <= MOST_CUT * all_of for cut, all_of, _ in counts.values()):
        return line
    hint = "train with longer inputs" if setting == OF_TRAINING else "raise the length"
    return f"warning: {line}; {hint} to keep whole texts"


def unknown_notes(where: str, unknown: int, pieces: int) -> list[str]:
    """A line on the share of pieces that the vocabulary does not know, if it is more than a few.

    Args:
      where: Name of the texts.
      unknown: Number of their pieces that are unknown.
      pieces: Number of all pieces.
    """
    if unknown <= MOST_UNKNOWN * pieces:
        return []
    return [
        f"warning: {where}: {100 * unknown / pieces:.3g} % of the pieces of the inputs are unknown "
        "to the vocabulary, so the model cannot tell them apart; use a backbone of the texts' "
        "language"
    ]
