"""python -m prompt_tuning.inspect PATH: describes a checkpoint, prompt, adapter or run.

Reads headers and indices, and the values of a prompt; never unpickles.
"""

from collections.abc import Sequence

from absl import flags, logging

from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.exchange.inspection import contents_of, lines, nearest_lines, prompt_lines

found_at = contents_of  # the former name


def main(words: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # JAX and Orbax log what they do as INFO and WARNING
    given = flags.FLAGS
    if len(words) != 1:
        raise UserError("give one path: python -m prompt_tuning.inspect PATH")
    if given.vocabulary and not given.backbone:
        raise UserError("--vocabulary names the nearest tokens of --backbone; give both")
    contents = contents_of(words[0])
    if given.backbone and not contents.prompt:
        raise UserError(f"--backbone: {words[0]} has no prompt ({contents.kind}); leave it out")
    report = lines(contents)
    if contents.prompt:
        prompt = contents.prompt()
        report += prompt_lines(prompt)
        if given.backbone:
            report += nearest_lines(prompt, given.backbone, given.vocabulary)
    print("\n".join(report))


if __name__ == "__main__":
    flags.DEFINE_string("backbone", None, "Backbone whose tokens nearest to a prompt to print.")
    flags.DEFINE_string("vocabulary", None, "SentencePiece model, to print tokens as words.")
    plain_command.run_with_words(main)
