"""python -m prompt_tuning.infer: a trained prompt's predictions for texts."""

from prompt_tuning import cli
from prompt_tuning.runs.infer import infer

if __name__ == "__main__":
    cli.main(infer)
