"""python -m prompt_tuning.serve: answers over HTTP, a task is a model name (docs/serving.md)."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.serve import serve

if __name__ == "__main__":
    gin_command.main(
        serve,
        data_flags.define_flags,
        data_flags.bindings,
        ("models/demo.gin", "runs/serve.gin"),  # those of the command line come after them
        plan=summary.plan,
    )
