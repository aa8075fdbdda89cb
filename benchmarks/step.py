"""A prompt-tuning step against the peer's, against model tuning, and against the machine's rate.

What is compared is timed in turn within one run; medians. Ours steps with PRODUCTS = 'auto' and
with 'float32', the peer in float32 and in bfloat16. The peer's environment is made on the first use
of --peer.
"""

import restart

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import peer
import steps
import usage
from usage import Usage

from prompt_tuning.families import preset
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.transformer import narrow

MATRIX = 2048


def main() -> None:
    parser = steps.parser(__doc__)
    parser.add_argument("--dtype", default="float32", choices=peer.PRECISIONS, help="ours")
    parser.add_argument("--steps", type=int, default=11, help="of each; the first is left out")
    parser.add_argument("--peer", action="store_true", help="time PEFT as well")
    steps.report(parser.parse_args(), measure)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    config = dataclasses.replace(
        preset(f"{arguments.family}_{arguments.size}"),
        dropout_rate=steps.DROPOUT,
        dtype=arguments.dtype,
        frozen_dtype=arguments.dtype,
    )
    tuning = PromptTuning(arguments.prompt, initializer=Uniform())
    everything = Everything(arguments.prompt, initializer=Uniform())
    models = {
        "prompt": steps.trained(config, tuning),
        "prompt_float32_products": steps.trained(
            dataclasses.replace(config, products="float32"), tuning
        ),
        "model_tuning": steps.trained(config, everything),
    }
    batch = steps.random_batch(config, arguments.batch, arguments.input, arguments.target)
    placed = {name: model.place(batch) for name, model in models.items()}
    timed: dict[str, Callable[[], Usage]] = {
        name: lambda model=model, name=name: model.usage(lambda: placed[name])
        for name, model in models.items()
    }
    timed |= {f"matmul_{dtype}": product(dtype) for dtype in peer.PRECISIONS}
    with contextlib.ExitStack() as stack:
        for dtype in peer.PRECISIONS if arguments.peer else ():
            steps_of_peer = peer.steps(config, arguments.prompt, [peer.batch(batch)], dtype)
            ask = stack.enter_context(steps_of_peer)
            timed[f"peer_{dtype}"] = functools.partial(ask, "0")
        median = steps.medians(timed, arguments.steps)
    cost = {name: model.cost(placed[name]) for name, model in models.items()}
    flops = {name: counted["flops"] for name, counted in cost.items()}
    seconds = {name: used.seconds for name, used in median.items()}
    operands = "bfloat16" if narrow.rounds(config.products) else arguments.dtype
    rates = {dtype: 2 * MATRIX**3 / seconds[f"matmul_{dtype}"] for dtype in peer.PRECISIONS}
    found = steps.by_key(median)
    found |= {f"matmul_{dtype}_flops_per_second": rate for dtype, rate in rates.items()}
    found |= {
        "tokens_per_second": arguments.batch * arguments.input / seconds["prompt"],
        "prompt_over_model_tuning": seconds["prompt"] / seconds["model_tuning"],
        "prompt_over_model_tuning_flops": flops["prompt"] / flops["model_tuning"],
        "prompt_flops": flops["prompt"],
        "prompt_bytes": cost["prompt"]["bytes"],
        "model_tuning_bytes": cost["model_tuning"]["bytes"],
        "matmul_flops_per_second": rates[operands],
        "time_over_flops_at_matmul_rate": seconds["prompt"] / (flops["prompt"] / rates[operands]),
    }
    if arguments.peer:
        of_peer = {dtype: seconds[f"peer_{dtype}"] for dtype in peer.PRECISIONS}
        found |= {
            f"speedup_over_peer_{dtype}": of_peer[dtype] / seconds["prompt"] for dtype in of_peer
        }
        found["peer_seconds"] = of_peer[arguments.dtype]
        found["speedup_over_peer"] = of_peer[arguments.dtype] / seconds["prompt"]
        found["speedup_over_peer_best"] = min(of_peer.values()) / seconds["prompt"]
    return found


class Everything(PromptTuning):
    """Trains each leaf of the same prompted model."""

    def trains(self, path: str, added: bool) -> bool:
        return True


def product(dtype: str) -> Callable[[], Usage]:
    """Times a large product with float32 sums, the most that the machine does."""
    a = jnp.ones((MATRIX, MATRIX), dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    jax.block_until_ready(multiply(a, a))
    return lambda: usage.of(lambda: jax.block_until_ready(multiply(a, a)))


if __name__ == "__main__":
    main()
