"""python -m prompt_tuning.infer: predicts for texts with a trained prompt."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.infer import infer

if __name__ == "__main__":
    gin_command.main(infer, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
