"""python -m prompt_tuning.experiments run|table|plot FILE: an experiment, its table, its figures.

`run` runs the cells that have no record yet, `table` collects the records into `table.jsonl` and
prints them, `plot` draws them. FILE is a gin file such as `experiments/e1_scaling.gin`; set its
macros by --gin.NAME=VALUE, the same for all three commands.
"""

import sys

from prompt_tuning.cli import gin_parsing, plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import commands

if __name__ == "__main__":
    try:
        sys.argv = gin_parsing.expand_gin_flags(sys.argv)
    except UserError as error:
        plain_command.exit_with(error)
    plain_command.main(commands.main, commands.define_flags, words=True)
