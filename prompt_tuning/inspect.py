"""python -m prompt_tuning.inspect PATH: what a checkpoint, prompt, adapter or run holds.

Reads headers and indices, and of a prompt its values; never unpickles.
"""

from collections.abc import Sequence

from absl import flags, logging

from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.exchange.inspection import _nearest_lines, found_at, lines, prompt_lines


def main(words: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # JAX and Orbax tell of what they do at INFO and WARNING
    given = flags.FLAGS
    if len(words) != 1:
        raise UserError("give one path: python -m prompt_tuning.inspect PATH")
    if given.vocabulary and not given.backbone:
        raise UserError("--vocabulary names the nearest tokens of --backbone; give both")
    found = found_at(words[0])
    if given.backbone and not found.prompt:
        raise UserError(f"--backbone: {words[0]} holds no prompt ({found.kind}); leave it out")
    report = lines(found)
    if found.prompt:
        prompt = found.prompt()
        report += prompt_lines(prompt)
        if given.backbone:
            report += _nearest_lines(prompt, given.backbone, given.vocabulary)
    print("\n".join(report))


if __name__ == "__main__":
    # Not at import: a flag's name can be taken once in a process, and every command has some.
    flags.DEFINE_string("backbone", None, "Backbone whose tokens nearest to a prompt to print.")
    flags.DEFINE_string("vocabulary", None, "SentencePiece model, for these tokens' words.")
    plain_command.run_with_words(main)
