"""python -m prompt_tuning.plan: what a step needs on a mesh of devices that need not be there."""

import os
import sys
from collections.abc import Sequence

LARGEST = 256  # devices of the machines that are looked at


def simulate(argv: Sequence[str]) -> None:
    """Lets JAX, not imported yet, see as many CPU devices as --devices says, and those of the
    largest machine that is looked at.
    """
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "devices" and argument.startswith("-"):
            value = value if equals else "".join(argv[i + 1 : i + 2])
            count = max(LARGEST, int(value) if value.isdecimal() else 0)
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
            os.environ["JAX_PLATFORMS"] = "cpu"


def with_defaults(argv: Sequence[str]) -> list[str]:
    """`argv` with the paper's method and the run's gin file, where it does not name them."""
    files = [word.partition("=")[2] for word in argv if word.startswith("--gin_file=")]
    wanted = [] if any("methods/" in file for file in files) else ["methods/prompt_tuning.gin"]
    wanted += [] if "runs/plan.gin" in files else ["runs/plan.gin"]
    return [*argv, *(f"--gin_file={file}" for file in wanted)]


if __name__ == "__main__":
    simulate(sys.argv)
    from absl import flags

    from prompt_tuning.cli import gin_command
    from prompt_tuning.data import flags as data_flags
    from prompt_tuning.model import summary
    from prompt_tuning.runs.plan import DEVICES, JSON, measure_step

    flags.DEFINE_integer(
        DEVICES, None, "Devices to simulate; those here, if not given.", lower_bound=1
    )
    flags.DEFINE_string(JSON, None, "File to write the plan to.")
    sys.argv = with_defaults(sys.argv)
    gin_command.main(measure_step, setup=data_flags.setup, plan=summary.plan)
