"""A prompt-tuning step against the peer's, against model tuning, and against the machine's rate.

What is compared is timed in turn within one run; medians. The peer's environment is made on the
first use of --peer.
"""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import peer
import steps

from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.t5.config import preset

MATRIX = 2048


def main() -> None:
    parser = steps.parser(__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=11, help="of each; the first is left out")
    parser.add_argument("--peer", action="store_true", help="time PEFT as well")
    steps.report(parser.parse_args(), measure)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    config = dataclasses.replace(
        preset(f"t5_1_1_{arguments.size}"),
        dropout_rate=steps.DROPOUT,
        dtype=arguments.dtype,
        frozen_dtype=arguments.dtype,
    )
    methods = {
        "prompt": PromptTuning(arguments.prompt, initializer=Uniform()),
        "model_tuning": Everything(arguments.prompt, initializer=Uniform()),
    }
    models = {name: steps.Trained(config, method) for name, method in methods.items()}
    batch = steps.random_batch(config, arguments.batch, arguments.input, arguments.target)
    placed = {name: model.place(batch) for name, model in models.items()}
    timed: dict[str, Callable[[], float]] = {
        name: lambda model=model, name=name: model.seconds(lambda: placed[name], 1)
        for name, model in models.items()
    }
    timed["matmul"] = matmul_seconds(arguments.dtype)
    with contextlib.ExitStack() as stack:
        if arguments.peer:
            batches = [peer.batch(batch)]
            ask = stack.enter_context(peer.steps(config, arguments.prompt, batches))
            timed["peer"] = lambda: ask("0")
        median = steps.medians(timed, arguments.steps)
    cost = {name: model.cost(placed[name]) for name, model in models.items()}
    flops = {name: counted["flops"] for name, counted in cost.items()}
    rate = 2 * MATRIX**3 / median["matmul"]
    found = {f"{name}_seconds": value for name, value in median.items()}
    found |= {
        "tokens_per_second": arguments.batch * arguments.input / median["prompt"],
        "prompt_over_model_tuning": median["prompt"] / median["model_tuning"],
        "prompt_over_model_tuning_flops": flops["prompt"] / flops["model_tuning"],
        "prompt_flops": flops["prompt"],
        "prompt_bytes": cost["prompt"]["bytes"],
        "model_tuning_bytes": cost["model_tuning"]["bytes"],
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


if __name__ == "__main__":
    main()
