"""python -m prompt_tuning.recycle: carries a trained prompt over to another backbone.

Lester et al., 2022 (arXiv 2208.05577): two backbones with one vocabulary embed the same tokens, so
a map from one embedding table to the other also maps prompts. It needs neither training of the
target nor task data.
"""

from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.recycling import EPOCHS, LEARNING_RATE, MAPPINGS, SKIP, TOKENS, recycle


def define_flags() -> plain_command.Flags:
    return {
        "prompt_file": flags.DEFINE_string("prompt", None, "Trained prompt.", required=True),
        "source": flags.DEFINE_string(
            "source", None, "Backbone that it was trained on.", required=True
        ),
        "target": flags.DEFINE_string(
            "target", None, "Backbone to carry it over to.", required=True
        ),
        "output": flags.DEFINE_string("output", None, "Prompt file to write.", required=True),
        "method": flags.DEFINE_enum(
            "method", "linear_least_squares", list(MAPPINGS), "How to map it."
        ),
        "skip": flags.DEFINE_integer(
            "skip", SKIP, "Tokens to leave out at the vocabulary's beginning.", 0
        ),
        "tokens": flags.DEFINE_integer("tokens", TOKENS, "Tokens after them to fit the map on.", 1),
        "epochs": flags.DEFINE_integer("epochs", EPOCHS, "Training epochs of mlp.", 1),
        "learning_rate": flags.DEFINE_float(
            "learning_rate", LEARNING_RATE, "Learning rate of mlp.", 0.0
        ),
        "seed": flags.DEFINE_integer("seed", 0, "Random seed of mlp."),
    }


if __name__ == "__main__":
    plain_command.main(lambda **settings: print(recycle(**settings)), define_flags)
