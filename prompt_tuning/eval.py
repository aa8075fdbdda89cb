"""python -m prompt_tuning.eval: measures a trained prompt on a split of a task."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.eval import evaluate

if __name__ == "__main__":
    gin_command.main(evaluate, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
