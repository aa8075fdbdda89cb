"""Where the demonstration backbone (docs/backbone.md) and what goes with it lie in the package."""

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"
_FOLDER = _ASSETS / "backbone"


def backbone() -> str:
    """The weights, bfloat16, for the preset "demo"."""
    return str(_FOLDER / "backbone.safetensors")


def vocabulary() -> str:
    """The SentencePiece model, 8,000 pieces; T5's 100 sentinels follow them."""
    return str(_FOLDER / "vocabulary.model")


def prompts() -> str:
    """The folder of trained prompts of `demo_questions` and `demo_topics`."""
    return str(_ASSETS / "prompts")


def data(task: str, split: str) -> str:
    """The rows of a demo task: "demo_reviews", "demo_questions" or "demo_topics"."""
    return str(_ASSETS / "data" / task.removeprefix("demo_") / f"{split}.jsonl")
