"""python -m prompt_tuning.adapters: prompts and trained leaves to Hugging Face PEFT and back."""

from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.adapters import FORMATS, described, read, write


def main() -> None:
    given = flags.FLAGS
    source, to = str(given["from"].value), given.to
    held, leaves = read(source, given.task, given.lora_alpha)
    write(to, given.format, held, leaves)
    print(f"{to}: {described(held)}")


if __name__ == "__main__":
    # Not at import: a flag's name can be taken once in a process, and every command has some.
    flags.DEFINE_string(
        "from", None, "PEFT adapter's folder, prompt or trained leaves.", required=True
    )
    flags.DEFINE_string("to", None, "Folder of a PEFT adapter, or file, to write.", required=True)
    flags.DEFINE_enum("format", None, FORMATS, "What to write.", required=True)
    flags.DEFINE_integer("task", None, "Of a PEFT multitask prompt, from 0.")
    flags.DEFINE_float("lora_alpha", None, "LORA_ALPHA of trained leaves.")
    plain_command.run(main)
