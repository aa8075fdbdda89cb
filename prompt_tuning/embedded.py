"""Where the demonstration backbone that travels with the package lies (docs/backbone.md)."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "assets" / "backbone"


def backbone() -> str:
    """The weights, bfloat16, for the preset "demo"."""
    return str(_FOLDER / "backbone.safetensors")


def vocabulary() -> str:
    """The SentencePiece model, 8,000 pieces; T5's 100 sentinels follow them."""
    return str(_FOLDER / "vocabulary.model")
