"""python -m prompt_tuning.convert: converts a backbone from one checkpoint format to another."""

import jax
from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.exchange.conversion import FORMATS, convert
from prompt_tuning.transformer.config import DTYPES

__all__ = ["convert", "main"]


def define_flags() -> plain_command.Flags:
    return {
        "source": flags.DEFINE_string("from", None, "Backbone to read.", required=True),
        "target": flags.DEFINE_string("to", None, "File or folder to create.", required=True),
        "form": flags.DEFINE_enum("format", None, list(FORMATS), "Format to write.", required=True),
        "model": flags.DEFINE_string(
            "model",
            None,
            "Preset, or folder with a config.json; default: the one beside the weights.",
        ),
        "dtype": flags.DEFINE_enum(
            "dtype", None, list(DTYPES), "Dtype to write; default: as stored."
        ),
    }


def main(*, source: str, target: str, form: str, model: str | None, dtype: str | None) -> None:
    jax.config.update("jax_platforms", "cpu")  # arrays stay on the host; accelerators may be busy
    convert(source, target, form, model, dtype)
    print(f"wrote {target}")


if __name__ == "__main__":
    plain_command.main(main, define_flags)
