"""A vocabulary without a file."""

from collections.abc import Sequence


class Numbers:
    """A vocabulary whose words are token ids; padding and end tokens are left out of texts."""

    def encode(self, text: str) -> list[int]:
        """The ids that `text` names, without an end token."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as words."""
        return " ".join(str(i) for i in ids if i > 1)
