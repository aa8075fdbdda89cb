"""A prompt-tuning step against the peer's, against model tuning, and against the machine's rate.

What is compared is timed in turn within one run; medians. The peer's environment is made on the
first use of --peer.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer
import steps

from prompt_tuning.checkpoint import huggingface
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.t5.config import T5Config, preset

DROPOUT = 0.1
MATRIX = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", help="of T5 v1.1")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--input", type=int, default=128)
    parser.add_argument("--target", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=11, help="of each; the first is left out")
    parser.add_argument("--peer", action="store_true", help="time PEFT as well")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {**vars(arguments), **steps.load(), **measure(arguments)}
    del found["json"]
    for name, value in found.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    config = dataclasses.replace(
        preset(f"t5_1_1_{arguments.size}"),
        dropout_rate=DROPOUT,
        dtype=arguments.dtype,
        frozen_dtype=arguments.dtype,
    )
    methods = {
        "prompt": PromptTuning(arguments.prompt, initializer=Uniform()),
        "model_tuning": Everything(arguments.prompt, initializer=Uniform()),
    }
    models = {name: steps.Trained(config, method) for name, method in methods.items()}
    batch = random_batch(arguments, config)
    placed = {name: model.place(batch) for name, model in models.items()}
    timed: dict[str, Callable[[], float]] = {
        name: lambda model=model, name=name: model.seconds(lambda: placed[name], 1)
        for name, model in models.items()
    }
    timed["matmul"] = matmul_seconds(arguments.dtype)
    with contextlib.ExitStack() as stack:
        if arguments.peer:
            timed["peer"] = stack.enter_context(peer_seconds(arguments, config))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(arguments.steps):
            for name, one in timed.items():
                seconds[name].append(one())
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    flops = {name: model.flops(placed[name]) for name, model in models.items()}
    rate = 2 * MATRIX**3 / median["matmul"]
    found = {f"{name}_seconds": value for name, value in median.items()}
    found |= {
        "tokens_per_second": arguments.batch * arguments.input / median["prompt"],
        "prompt_over_model_tuning": median["prompt"] / median["model_tuning"],
        "prompt_over_model_tuning_flops": flops["prompt"] / flops["model_tuning"],
        "matmul_flops_per_second": rate,
        "time_over_flops_at_matmul_rate": median["prompt"] / (flops["prompt"] / rate),
    }
    if arguments.peer:
        found["speedup_over_peer"] = median["peer"] / median["prompt"]
    return found


class Everything(PromptTuning):
    """Trains each leaf of the same prompted model."""

    def trains(self, path: str, added: bool) -> bool:
        return True


def random_batch(arguments: argparse.Namespace, config: T5Config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = (arguments.batch, arguments.input), (arguments.batch, arguments.target)
    inputs, targets = (rng.integers(2, config.vocab_size, shape, np.int32) for shape in shapes)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
    }


def matmul_seconds(dtype: str) -> Callable[[], float]:
    """Times a large product, the most that the machine does."""
    a = jnp.ones((MATRIX, MATRIX), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(a, a))

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        return time.perf_counter() - began

    return seconds


@contextlib.contextmanager
def peer_seconds(arguments: argparse.Namespace, config: T5Config) -> Iterator[Callable[[], float]]:
    """Times the peer's step, in a process of its own that waits in between."""
    settings: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("batch", "input", "target", "prompt", "dtype")
    }
    settings["config"] = huggingface.described(config, np.dtype("float32")) | {
        "dropout_rate": DROPOUT
    }
    script = Path(__file__).with_name("step_torch.py")
    command = [peer.python(), script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(settings) + "\n")

        def seconds() -> float:
            process.stdin.write("step\n")
            if not (line := process.stdout.readline()):
                sys.exit("the peer has stopped; its message is above")
            return float(line)

        yield seconds
        process.stdin.close()


if __name__ == "__main__":
    main()
