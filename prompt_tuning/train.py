"""python -m prompt_tuning.train: trains a prompt (or another method) on a task."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.train import train

if __name__ == "__main__":
    gin_command.main(train, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
