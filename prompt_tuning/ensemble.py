"""python -m prompt_tuning.ensemble: measures several prompts of a task that vote."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.runs.ensemble import ensemble

if __name__ == "__main__":
    gin_command.main(ensemble, setup=data_flags.setup)
