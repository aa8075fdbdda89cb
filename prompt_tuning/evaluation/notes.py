"""The line that every command shows on the texts that it cuts."""

from collections.abc import Mapping

MOST_CUT = 0.01  # share of texts that are cut, above which a run warns
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
