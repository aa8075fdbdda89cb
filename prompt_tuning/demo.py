"""python -m prompt_tuning.demo: the three embedded tasks in mixed batches, from one backbone."""

from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.runs.demo import demo


def define_flags() -> plain_command.Flags:
    return {
        "prompt_file": flags.DEFINE_string(
            "prompt",
            "runs/demo/prompt_best.npy",
            "Prompt of demo_reviews, as `make demo` trains it.",
        )
    }


if __name__ == "__main__":
    plain_command.main(demo, define_flags)
