"""python -m prompt_tuning.report parameters: compares the parameters of the tuning methods."""

from collections.abc import Sequence

from absl import flags

from prompt_tuning.analysis import parameter_counts, style
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.table import table
from prompt_tuning.model.summary import parameters
from prompt_tuning.runtime.files import write_json

__all__ = ["main", "parameters", "table"]


def main(words: Sequence[str]) -> None:
    if list(words) != ["parameters"]:
        raise UserError("usage: python -m prompt_tuning.report parameters")
    sizes = flags.FLAGS.sizes
    print(parameter_counts.table(parameter_counts.rows(sizes)))
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, parameter_counts.content(sizes))
    if flags.FLAGS.plot:
        style.save(parameter_counts.figure(sizes), flags.FLAGS.plot)


if __name__ == "__main__":
    sizes = list(parameter_counts.SIZES)
    flags.DEFINE_list("sizes", sizes, "Sizes of T5 v1.1, or names of presets.")
    flags.DEFINE_string("json", None, "File to write the rows to.")
    flags.DEFINE_string("plot", None, "File of the paper's figure 4: .png, .pdf or .svg.")
    plain_command.run_with_words(main)
