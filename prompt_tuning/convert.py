"""python -m prompt_tuning.convert: converts a backbone from one checkpoint format to another."""

import jax
from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.conversion import FORMATS, convert
from prompt_tuning.t5.config import DTYPES

__all__ = ["convert", "main"]


def main() -> None:
    given = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # arrays stay on the host; accelerators may be busy
    convert(given["from"].value, given.to, given.format, given.model, given.dtype)
    print(f"wrote {given.to}")


if __name__ == "__main__":
    flags.DEFINE_string("from", None, "Backbone to read.", required=True)
    flags.DEFINE_string("to", None, "File or folder to create.", required=True)
    flags.DEFINE_enum("format", None, list(FORMATS), "Format to write.", required=True)
    flags.DEFINE_string("model", None, "Preset of the backbone; default: as in its config.json.")
    flags.DEFINE_enum("dtype", None, list(DTYPES), "Dtype to write; default: as stored.")
    plain_command.run(main)
