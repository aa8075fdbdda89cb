"""python -m prompt_tuning.ensemble: measures several prompts of a task that vote."""

from prompt_tuning import cli
from prompt_tuning.runs.ensemble import ensemble

if __name__ == "__main__":
    cli.main(ensemble)
