"""python -m prompt_tuning.train: trains a prompt (or another method) on a task."""

from prompt_tuning import cli
from prompt_tuning.runs.train import train

if __name__ == "__main__":
    cli.main(train)
