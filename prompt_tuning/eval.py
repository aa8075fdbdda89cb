"""python -m prompt_tuning.eval: measures a trained prompt on a split of a task."""

from prompt_tuning import cli
from prompt_tuning.runs.eval import evaluate

if __name__ == "__main__":
    cli.main(evaluate)
