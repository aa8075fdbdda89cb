"""python -m prompt_tuning.suite: trains and scores every task of a benchmark."""

from prompt_tuning import cli
from prompt_tuning.runs.suite import suite

if __name__ == "__main__":
    cli.main(suite)
