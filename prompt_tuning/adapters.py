"""python -m prompt_tuning.adapters: converts prompts and trained leaves from and to PEFT."""

from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.adapters import FORMATS, read, write


def define_flags() -> plain_command.Flags:
    return {
        "source": flags.DEFINE_string(
            "from",
            None,
            "PEFT adapter folder, prompt file or file of trained leaves.",
            required=True,
        ),
        "target": flags.DEFINE_string(
            "to", None, "Folder of a PEFT adapter, or file, to write.", required=True
        ),
        "form": flags.DEFINE_enum("format", None, FORMATS, "What to write.", required=True),
        "task": flags.DEFINE_integer("task", None, "Task of a PEFT multitask prompt, from 0."),
        "lora_alpha": flags.DEFINE_float(
            "lora_alpha", None, "LORA_ALPHA of trained leaves of LoRA."
        ),
    }


def main(
    *, source: str, target: str, form: str, task: int | None, lora_alpha: float | None
) -> None:
    adaptation = read(source, task, lora_alpha)
    write(target, form, adaptation)
    print(f"{target}: {adaptation}")


if __name__ == "__main__":
    plain_command.main(main, define_flags)
