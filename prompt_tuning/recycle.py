"""python -m prompt_tuning.recycle: carries a trained prompt over to another backbone.

Lester et al., 2022 (arXiv 2208.05577): two backbones with one vocabulary embed the same tokens, so
a map from one embedding table to the other also maps prompts. It needs neither training of the
target nor task data.
"""

from absl import flags, logging

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.recycling import EPOCHS, LEARNING_RATE, MAPPINGS, SKIP, TOKENS, recycle


def main() -> None:
    logging.set_verbosity(logging.WARNING)  # JAX logs each missing kind of device as INFO
    given = flags.FLAGS
    report = recycle(
        given.prompt,
        given.source,
        given.target,
        given.output,
        given.method,
        skip=given.skip,
        tokens=given.tokens,
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    print(report)


if __name__ == "__main__":
    flags.DEFINE_string("prompt", None, "Trained prompt.", required=True)
    flags.DEFINE_string("source", None, "Backbone that it was trained on.", required=True)
    flags.DEFINE_string("target", None, "Backbone to carry it over to.", required=True)
    flags.DEFINE_enum("method", "linear_least_squares", list(MAPPINGS), "How to map it.")
    flags.DEFINE_string("output", None, "Prompt file to write.", required=True)
    flags.DEFINE_integer("skip", SKIP, "Tokens to leave out at the vocabulary's beginning.", 0)
    flags.DEFINE_integer("tokens", TOKENS, "Tokens after those to fit the map on.", 1)
    flags.DEFINE_integer("epochs", EPOCHS, "Training epochs of mlp.", 1)
    flags.DEFINE_float("learning_rate", LEARNING_RATE, "Learning rate of mlp.", 0.0)
    flags.DEFINE_integer("seed", 0, "Random seed of mlp.")
    plain_command.run(main)
