"""python -m prompt_tuning.suite: trains and scores every task of a benchmark."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.suite import train_tasks

if __name__ == "__main__":
    gin_command.main(train_tasks, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
