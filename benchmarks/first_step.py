"""Runs one step of training for compile_time.py; prints when each part of it is done."""

import sys
import time

import jax
import steps

from prompt_tuning.methods import PromptTuning
from prompt_tuning.t5.config import preset


def main() -> None:
    done("imports")
    size, *numbers = sys.argv[1:]
    rows, inputs, targets, prompt = map(int, numbers)
    jax.devices()
    done("devices")
    config = preset(f"t5_1_1_{size}", dropout_rate=steps.DROPOUT)
    trained = steps.trained(config, PromptTuning(prompt))
    done("weights")
    batch = trained.place(steps.random_batch(config, rows, inputs, targets))
    trained.seconds(lambda: batch, 1)
    done("first_step")


def done(part: str) -> None:
    print(part, time.time(), flush=True)


if __name__ == "__main__":
    main()
