"""python -m prompt_tuning.plan: what a train step needs on a mesh of simulated devices."""

import os
import sys
from collections.abc import Sequence

LARGEST = 256  # devices of the largest machine that plans look at


def simulate(argv: Sequence[str]) -> None:
    """Makes JAX, not imported yet, simulate `LARGEST` CPU devices, or --devices if that is more."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "devices" and argument.startswith("-"):
            value = value if equals else "".join(argv[i + 1 : i + 2])
            count = max(LARGEST, int(value) if value.isdecimal() else 0)
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
            os.environ["JAX_PLATFORMS"] = "cpu"


def with_defaults(argv: Sequence[str]) -> list[str]:
    """Adds the paper's method and `runs/plan.gin` to `argv`, if it names no others."""
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
    from prompt_tuning.runs.plan import measure_step

    devices = flags.DEFINE_integer(
        "devices", None, "Number of devices to simulate; by default all that JAX has.", 1
    )
    json_file = flags.DEFINE_string("json", "", "File to write the plan to.")

    def setup() -> list[str]:
        bindings = [f"DEVICES = {devices.value}", f"JSON_FILE = {json_file.value!r}"]
        return [*data_flags.setup(), *bindings]

    sys.argv = with_defaults(sys.argv)
    gin_command.main(measure_step, setup=setup, plan=summary.plan)
