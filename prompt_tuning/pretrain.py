"""python -m prompt_tuning.pretrain: trains a backbone from scratch or adapts one further."""

from prompt_tuning import cli
from prompt_tuning.runs.pretrain import pretrain

if __name__ == "__main__":
    cli.main(pretrain)
