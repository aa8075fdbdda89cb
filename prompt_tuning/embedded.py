"""Paths of the small backbones (docs/backbone.md), prompts and data shipped with the package."""

from pathlib import Path

from prompt_tuning.errors import UserError

_ASSETS = Path(__file__).parent / "assets"
_FOLDER = _ASSETS / "backbone"


def backbone() -> str:
    """Path of the demonstration backbone's weights, bfloat16, for the preset "demo"."""
    return str(_FOLDER / "backbone.safetensors")


def ladder(size: str, stage: str = "final", folder: str = "") -> str:
    """Path of the weights of a size of the ladder, bfloat16, for the preset of that name.

    Args:
      size: "ladder_xs", "ladder_s" or "ladder_l".
      stage: "final"; or, of the shorter run of stages, "span", before LM adaptation, or "lm10",
        "lm50" or "lm100", after that percentage of its steps.
      folder: output folder of `scripts/make_backbones.py`; "" for the weights in the package.

    Raises:
      UserError: if the weights do not exist.
    """
    path = Path(folder or _ASSETS / "ladder", size, f"{stage}.safetensors")
    if not path.exists():
        raise UserError(
            f"LADDER_DIR = {folder!r}, LADDER_STAGE = {stage!r}: {path} does not exist; "
            "make the ladder with python scripts/make_backbones.py"
        )
    return str(path)


def vocabulary() -> str:
    """Path of the SentencePiece model: 8,000 pieces, without T5's 100 sentinels."""
    return str(_FOLDER / "vocabulary.model")


def prompts() -> str:
    """Path of the folder with trained prompts for the three demo tasks."""
    return str(_ASSETS / "prompts")


def data(task: str, split: str) -> str:
    """Path of the rows of "demo_reviews", "demo_questions" or "demo_topics", a JSON-lines file."""
    return str(_ASSETS / "data" / task.removeprefix("demo_") / f"{split}.jsonl")
