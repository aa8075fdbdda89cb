"""What a run tells at its end: parameters, the table of scores, the learning curve.

`python -m prompt_tuning.report parameters` compares the tuning methods' parameters.
"""

from collections.abc import Sequence

from absl import flags

from prompt_tuning.analysis import style
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.table import table
from prompt_tuning.model.summary import parameters
from prompt_tuning.runtime.files import write_json

__all__ = ["main", "parameters", "table"]


def main(words: Sequence[str]) -> None:
    from prompt_tuning.analysis import parameters as counted

    if list(words) != ["parameters"]:
        raise UserError("usage: python -m prompt_tuning.report parameters")
    sizes = flags.FLAGS.sizes
    print(counted.table(counted.rows(sizes)))
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, counted.content(sizes))
    if flags.FLAGS.plot:
        style.save(counted.figure(sizes), flags.FLAGS.plot)


if __name__ == "__main__":
    from prompt_tuning.analysis.parameters import SIZES

    # Here, not above: other commands of one process have flags of the same names.
    flags.DEFINE_string("json", None, "File to write the rows to.")
    flags.DEFINE_string("plot", None, "File of the paper's figure 4: .png, .pdf or .svg.")
    flags.DEFINE_list("sizes", list(SIZES), "Sizes of T5 v1.1, and other presets.")
    plain_command.run_with_words(main)
