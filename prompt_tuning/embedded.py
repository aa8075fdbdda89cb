"""Where the small backbones (docs/backbone.md) and what goes with them lie in the package."""

from pathlib import Path

from prompt_tuning.errors import UserError

_ASSETS = Path(__file__).parent / "assets"
_FOLDER = _ASSETS / "backbone"


def backbone() -> str:
    """The weights, bfloat16, for the preset "demo"."""
    return str(_FOLDER / "backbone.safetensors")


def ladder(size: str, stage: str = "lm100", folder: str = "") -> str:
    """The weights of a size of the ladder, bfloat16, for the preset of that name.

    Args:
      size: "ladder_xs", "ladder_s", "ladder_m" or "ladder_l".
      stage: "span", before LM adaptation, or after 10, 50 or 100 per cent of its steps, "lm100".
      folder: of `scripts/make_ladder.py`; "" for what travels with the package.

    Raises:
      UserError: if there are no such weights.
    """
    path = Path(folder or _ASSETS / "ladder", size, f"{stage}.safetensors")
    if not path.exists():
        raise UserError(
            f"LADDER_DIR = {folder!r}, LADDER_STAGE = {stage!r}: no {path}; "
            "python scripts/make_ladder.py makes the ladder"
        )
    return str(path)


def vocabulary() -> str:
    """The SentencePiece model, 8,000 pieces; T5's 100 sentinels follow them."""
    return str(_FOLDER / "vocabulary.model")


def prompts() -> str:
    """The folder of trained prompts of `demo_questions` and `demo_topics`."""
    return str(_ASSETS / "prompts")


def data(task: str, split: str) -> str:
    """The rows of a demo task: "demo_reviews", "demo_questions" or "demo_topics"."""
    return str(_ASSETS / "data" / task.removeprefix("demo_") / f"{split}.jsonl")
