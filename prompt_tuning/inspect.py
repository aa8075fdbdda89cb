"""python -m prompt_tuning.inspect PATH: describes a checkpoint, prompt, adapter or run.

Reads headers and indices, and the values of a prompt; never unpickles.
"""

from collections.abc import Sequence

from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.exchange.inspection import contents_of, lines, nearest_lines, prompt_lines

found_at = contents_of  # the former name


def define_flags() -> plain_command.Flags:
    return {
        "backbone": flags.DEFINE_string(
            "backbone", None, "Backbone whose tokens nearest to a prompt to print."
        ),
        "vocabulary": flags.DEFINE_string(
            "vocabulary", None, "SentencePiece model, to print tokens as words."
        ),
    }


def main(words: Sequence[str], *, backbone: str | None, vocabulary: str | None) -> None:
    if len(words) != 1:
        raise UserError("give one path: python -m prompt_tuning.inspect PATH")
    if vocabulary and not backbone:
        raise UserError("--vocabulary names the nearest tokens of --backbone; give both")
    contents = contents_of(words[0])
    if backbone and not contents.prompt:
        raise UserError(f"--backbone: {words[0]} has no prompt ({contents.kind}); leave it out")
    report = lines(contents)
    if contents.prompt:
        prompt = contents.prompt()
        report += prompt_lines(prompt)
        if backbone:
            report += nearest_lines(prompt, backbone, vocabulary, words[0])
    print("\n".join(report))


if __name__ == "__main__":
    plain_command.main(main, define_flags, words=True)
