"""python -m prompt_tuning.ensemble: measures several prompts of one task, which vote."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.ensemble import evaluate

if __name__ == "__main__":
    gin_command.main(evaluate, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
