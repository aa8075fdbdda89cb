"""python -m prompt_tuning.convert: a backbone from one format into another, leaf by leaf."""

import jax
from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.conversion import FORMATS, convert
from prompt_tuning.t5.config import DTYPES


def main() -> None:
    given = flags.FLAGS
    convert(given["from"].value, given.to, given.format, given.model, given.dtype)
    print(f"wrote {given.to}")


if __name__ == "__main__":
    # Not at import: a flag's name can be taken once in a process, and every command has some.
    flags.DEFINE_string("from", None, "The backbone to read.", required=True)
    flags.DEFINE_string("to", None, "The file or folder to make.", required=True)
    flags.DEFINE_enum("format", None, list(FORMATS), "The format to write.", required=True)
    flags.DEFINE_string("model", None, "The preset that it is of; else config.json says it.")
    flags.DEFINE_enum("dtype", None, list(DTYPES), "To write in; as stored if left out.")
    jax.config.update("jax_platforms", "cpu")  # arrays stay on the host; accelerators may be in use
    plain_command.run(main)
