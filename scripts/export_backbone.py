"""Writes the newest checkpoint of a model-tuning run (pre-training, say) as one backbone file.

python scripts/export_backbone.py --model_dir=RUN --output=backbone.safetensors
"""

import numpy as np
from absl import flags

from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.run import load_trained
from prompt_tuning.cli import plain_command

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The .safetensors file to write.", required=True)
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the weights.")


def main() -> None:
    step, leaves = load_trained(_MODEL_DIR.value)
    backbone.save(_OUTPUT.value, leaves, _DTYPE.value)
    count = sum(np.size(leaf) for leaf in leaves.values())
    print(f"step {step}: {len(leaves)} leaves, {count:,} parameters, to {_OUTPUT.value}")


if __name__ == "__main__":
    plain_command.main(main)
