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


def define_flags() -> plain_command.Flags:
    return {
        "sizes": flags.DEFINE_list(
            "sizes", list(parameter_counts.SIZES), "Sizes of T5 v1.1, or names of presets."
        ),
        "json": flags.DEFINE_string("json", None, "File to write the rows to."),
        "plot": flags.DEFINE_string(
            "plot", None, "File of the paper's figure 4: .png, .pdf or .svg."
        ),
    }


def main(words: Sequence[str], *, sizes: Sequence[str], json: str | None, plot: str | None) -> None:
    if list(words) != ["parameters"]:
        raise UserError("usage: python -m prompt_tuning.report parameters")
    print(parameter_counts.table(parameter_counts.rows(sizes)))
    if json:
        write_json(json, parameter_counts.content(sizes))
    if plot:
        style.save(parameter_counts.figure(sizes), plot)


if __name__ == "__main__":
    plain_command.main(main, define_flags, words=True)
