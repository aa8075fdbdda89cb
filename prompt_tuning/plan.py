"""python -m prompt_tuning.plan: what a train step needs on a mesh of simulated devices."""

import jax
from absl import flags

from prompt_tuning.cli import gin_command, plain_command
from prompt_tuning.model import summary
from prompt_tuning.runs.plan import MACHINES, measure_step

LARGEST = max(devices for devices, _ in MACHINES.values())


def define_flags() -> plain_command.Flags:
    return {
        "devices": flags.DEFINE_integer(
            "devices", None, "Devices to simulate; by default, those of this machine.", 1
        ),
        "json_file": flags.DEFINE_string("json", "", "File to write the plan to."),
    }


def bindings(*, devices: int | None, json_file: str) -> list[str]:
    """Simulates CPU devices, those of the largest machine among them; returns gin bindings."""
    if devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(LARGEST, devices))
    return [f"DEVICES = {devices}", f"JSON_FILE = {json_file!r}"]


if __name__ == "__main__":
    gin_command.main(
        measure_step,
        define_flags,
        bindings,
        files=("methods/prompt_tuning.gin", "runs/plan.gin"),
        plan=summary.plan,
        resumes=False,
    )
