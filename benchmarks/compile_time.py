"""Measures the wait before training: compilation of many layers, and with a warm cache.

Compiles a train step of scanned and of single layers, few and many, from shapes. Then starts
first_step.py in fresh processes, each time with an empty compilation cache (JAX's, as
JAX_COMPILATION_CACHE_DIR sets it up) and again with what that left there. All in turn; medians.
"""

import restart

import argparse
import dataclasses
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import steps
import usage
from usage import Usage

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning
from prompt_tuning.runs.plan import lowered_step
from prompt_tuning.t5.config import T5Config, preset
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor

FEW, MANY = 4, 24


def main() -> None:
    parser = steps.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    steps.report(parser.parse_args(), measure)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    jax.config.update("jax_enable_compilation_cache", False)
    config = preset(f"t5_1_1_{arguments.size}", dropout_rate=steps.DROPOUT)
    timed = {
        f"{'scanned' if scanned else 'single'}_{layers}": functools.partial(
            compiling, with_layers(config, layers, scanned), arguments
        )
        for scanned in (True, False)
        for layers in (FEW, MANY)
    }
    # The first round is left out: it also sets up the compiler.
    found = {
        f"{name}_seconds": used.seconds
        for name, used in steps.medians(timed, 1 + arguments.rounds).items()
    }
    for kind in ("scanned", "single"):
        few, many = (found[f"{kind}_{layers}_seconds"] for layers in (FEW, MANY))
        found[f"{kind}_{MANY}_over_{FEW}"] = many / few
    started = starts(arguments)
    parts = {name: statistics.median(seconds) for name, seconds in started.items()}
    found |= {f"{name}_seconds": seconds for name, seconds in parts.items()}
    return found | {"warm_over_cold": parts["warm_total"] / parts["cold_total"]}


def with_layers(config: T5Config, layers: int, scanned: bool) -> T5Config:
    return dataclasses.replace(
        config, num_encoder_layers=layers, num_decoder_layers=layers, scan_layers=scanned
    )


def compiling(config: T5Config, arguments: argparse.Namespace) -> Usage:
    """What tracing and compiling a step take."""
    jax.clear_caches()

    def compile_step() -> None:
        lowered, _ = lowered_step(
            config,
            method=PromptTuning(arguments.prompt),
            layout=sharding.layout(),
            lengths={"inputs": arguments.input, "targets": arguments.target},
            batch_size=arguments.batch,
            optimizer=adafactor,
            loss=Loss(),
            num_microbatches=1,
        )
        lowered.compile()

    return usage.of(compile_step)


def starts(arguments: argparse.Namespace) -> Mapping[str, list[float]]:
    """Seconds of the parts of each start, cold and warm."""
    found: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("cold", "warm"):
                for part, seconds in start(arguments, cache).items():
                    found.setdefault(f"{kind}_{part}", []).append(seconds)
    return found


def start(arguments: argparse.Namespace, cache: str) -> dict[str, float]:
    """Seconds from the start of a process to the end of its first step, and of the parts."""
    shape = (arguments.size, *map(str, (arguments.batch, arguments.input, arguments.target)))
    script = Path(__file__).with_name("first_step.py")
    began = time.time()
    done = subprocess.run(
        [sys.executable, script, *shape, str(arguments.prompt)],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    ends = {name: float(at) for name, at in map(str.split, done.stdout.splitlines())}
    times = dict(zip(ends, [began, *ends.values()], strict=False))
    parts = {name: ends[name] - times[name] for name in ends}
    return parts | {"total": max(ends.values()) - began}


if __name__ == "__main__":
    main()
