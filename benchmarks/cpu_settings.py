"""What rounded products and the allocator's settings give on a CPU: the time of steps without.

Each setting is a process of its own, since glibc reads its tunables at the start; processes take
turns, and each reports the median of its steps.
"""

import checkout

import argparse
import json
import os
import statistics
import subprocess
import sys

from prompt_tuning.runtime import huge_pages
from prompt_tuning.transformer import narrow

PRODUCTS = {narrow.VARIABLE: "float32"}
PAGES = {"GLIBC_TUNABLES": f"{huge_pages.TUNABLE}=0"}
WITHOUT = {"neither_left_out": {}, "products": PRODUCTS, "pages": PAGES, "both": PRODUCTS | PAGES}
# Model, whether all of it is trained, rows, tokens of inputs and targets.
CASES = {
    "pretraining": ("demo", True, 128, 40, 8),
    "demo_prompt": ("demo", False, 32, 32, 4),
    "small_prompt": ("t5_1_1_small", False, 8, 128, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each setting")
    parser.add_argument("--steps", type=int, default=11, help="of a process; the first is left out")
    parser.add_argument("--case", choices=CASES, help="what such a process measures")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(seconds_here(arguments.case, arguments.steps)))
        return
    import steps

    measured = steps.load()
    for case in CASES:
        runs = {name: [] for name in WITHOUT}
        for _ in range(arguments.rounds):
            for name, environment in WITHOUT.items():
                runs[name].append(seconds_of(case, arguments.steps, environment))
        seconds = {name: statistics.median(values) for name, values in runs.items()}
        base = seconds.pop("neither_left_out")
        measured[f"{case}_seconds"] = base
        measured |= {f"{case}_without_{name}": value / base for name, value in seconds.items()}
    for name, value in measured.items():
        print(f"{name:36} {value:.4g}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(measured, file, indent=2)


def seconds_of(case: str, steps: int, environment: dict[str, str]) -> float:
    command = [sys.executable, __file__, f"--case={case}", f"--steps={steps}"]
    inherited = os.environ | {"GLIBC_TUNABLES": huge_pages.TUNABLES} | environment
    return float(subprocess.run(command, env=inherited, stdout=-1, check=True).stdout)


def seconds_here(case: str, count: int) -> float:
    """The median time of a step in this process."""
    import steps

    from prompt_tuning.methods import ModelTuning, PromptTuning, Uniform
    from prompt_tuning.t5.config import preset

    name, everything, rows, inputs, targets = CASES[case]
    method = ModelTuning() if everything else PromptTuning(20, initializer=Uniform())
    model = steps.trained(name, method)
    batch = model.place(steps.random_batch(preset(name), rows, inputs, targets))
    taken = [model.usage(lambda: batch) for _ in range(count)][1:]
    return steps.median(taken).seconds


if __name__ == "__main__":
    main()
