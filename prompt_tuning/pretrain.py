"""python -m prompt_tuning.pretrain: trains a backbone from scratch or adapts one further."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.pretrain import pretrain

if __name__ == "__main__":
    gin_command.main(pretrain, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
