"""python -m prompt_tuning.adapters: converts prompts and trained leaves from and to PEFT."""

from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.adapters import FORMATS, read, write


def main() -> None:
    given = flags.FLAGS
    adaptation = read(str(given["from"].value), given.task, given.lora_alpha)
    write(given.to, given.format, adaptation)
    print(f"{given.to}: {adaptation}")


if __name__ == "__main__":
    flags.DEFINE_string(
        "from", None, "PEFT adapter folder, prompt file or file of trained leaves.", required=True
    )
    flags.DEFINE_string("to", None, "Folder of a PEFT adapter, or file, to write.", required=True)
    flags.DEFINE_enum("format", None, FORMATS, "What to write.", required=True)
    flags.DEFINE_integer("task", None, "Task of a PEFT multitask prompt, from 0.")
    flags.DEFINE_float("lora_alpha", None, "LORA_ALPHA of trained leaves of LoRA.")
    plain_command.run(main)
