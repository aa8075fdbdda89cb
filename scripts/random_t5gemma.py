"""Writes a small T5Gemma of random weights as a Hugging Face folder, for models/t5gemma_demo.gin.

    python scripts/random_t5gemma.py runs/t5gemma_demo

Its shape is the preset `t5gemma_demo`, its vocabulary the demonstration's. A prompt can be trained
on it, but what it says means nothing.
"""

import shutil
import sys
from pathlib import Path

import jax

from prompt_tuning import embedded, families, sharding
from prompt_tuning.checkpoint.formats import huggingface
from prompt_tuning.methods import Method
from prompt_tuning.model.tuned import initialize
from prompt_tuning.transformer.paths import flatten


def main(folder: Path) -> None:
    config = families.PRESETS["t5gemma_demo"]
    layout = sharding.layout(devices=jax.devices()[:1])
    leaves = flatten(initialize(config, Method(), layout=layout).params)
    folder.parent.mkdir(parents=True, exist_ok=True)
    huggingface.save(folder, leaves, config)
    shutil.copy(embedded.vocabulary(), folder / "tokenizer.model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
