"""python -m prompt_tuning.demo: trains the embedded tasks, then answers all in one batch."""

from prompt_tuning.cli import gin_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.model import summary
from prompt_tuning.runs.demo import demo

if __name__ == "__main__":
    gin_command.main(demo, data_flags.define_flags, data_flags.bindings, plan=summary.plan)
