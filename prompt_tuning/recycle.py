"""python -m prompt_tuning.recycle: carries a trained prompt over to another backbone.

Lester et al., 2022 (arXiv 2208.05577): two backbones with one vocabulary embed the same tokens, so
what takes one table of embeddings to the other also takes prompts there. No training of the target,
and no task's data. In each method `source` [N, D] and `target` [N, D'] embed the same N tokens.
"""

import numpy as np
from absl import flags, logging

from prompt_tuning.checkpoint import prompts
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.exchange.recycling import (
    EPOCHS,
    LEARNING_RATE,
    MAPPINGS,
    SKIP,
    TOKENS,
    embedding,
    fitting_rows,
)


def main() -> None:
    logging.set_verbosity(logging.WARNING)  # JAX tells of each device that is not there at INFO
    given = flags.FLAGS
    network = {"epochs": given.epochs, "learning_rate": given.learning_rate, "seed": given.seed}
    prompt = prompts.load(given.prompt)
    source = embedding(given.source)
    if prompt.shape[1] != source.shape[1]:
        raise UserError(
            f"{given.prompt}: the prompt is {prompt.shape[1]} wide, {given.source} "
            f"{source.shape[1]}; give the backbone that it was trained on as --source"
        )
    target = embedding(given.target)
    rows = fitting_rows(source, target, given.skip, given.tokens)
    options = network if given.method == "mlp" else {}
    recycled = MAPPINGS[given.method](prompt, *rows, **options)
    if not np.isfinite(recycled).all():
        raise UserError(f"--learning_rate={given.learning_rate}: mlp diverges; lower it")
    prompts.save(given.output, recycled)
    if len(source) != len(target):
        print(f"{len(source)} and {len(target)} rows of embeddings: the first ones are common")
    print(
        f"{given.output}: {recycled.shape[0]} vectors, {recycled.shape[1]} wide, by {given.method} "
        f"over tokens {given.skip} to {given.skip + given.tokens - 1}"
    )


if __name__ == "__main__":
    # Not at import: a flag's name can be taken once in a process, and every command has some.
    flags.DEFINE_string("prompt", None, "The trained prompt.", required=True)
    flags.DEFINE_string("source", None, "Backbone that it was trained on.", required=True)
    flags.DEFINE_string("target", None, "Backbone that it is wanted for.", required=True)
    flags.DEFINE_enum("method", "linear_least_squares", list(MAPPINGS), "How to map it.")
    flags.DEFINE_string("output", None, "Prompt file to write.", required=True)
    flags.DEFINE_integer("skip", SKIP, "Tokens to leave out at the vocabulary's beginning.", 0)
    flags.DEFINE_integer("tokens", TOKENS, "Tokens to fit the map on, after those.", 1)
    flags.DEFINE_integer("epochs", EPOCHS, "Of mlp.", 1)
    flags.DEFINE_float("learning_rate", LEARNING_RATE, "Of mlp.", 0.0)
    flags.DEFINE_integer("seed", 0, "Of mlp.")
    plain_command.run(main)
