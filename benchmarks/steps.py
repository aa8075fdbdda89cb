"""What the benchmarks share: a training step to time, medians, the machine's load."""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import usage
from usage import Usage

from prompt_tuning import embedded, sharding
from prompt_tuning.families import preset
from prompt_tuning.methods import Method
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.training.loop import create_state
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor, only_trained
from prompt_tuning.training.step import make_train_step
from prompt_tuning.transformer.config import Config

Batch = Mapping[str, np.ndarray | jax.Array]
Name = TypeVar("Name", bound=Hashable)
BUSY = 0.25  # of the cores, before the benchmark adds its own work
FAMILIES = ("t5_1_1", "t5gemma")
DROPOUT = 0.1  # the paper's, where a step is compared with the peer's


class Trained:
    """A model that steps."""

    def __init__(self, tuned: TunedModel) -> None:
        self.layout = tuned.layout
        self._key = jax.random.key(0) if tuned.model.config.dropout_rate else None
        transform = only_trained(adafactor(0.3), tuned.split)
        self._state, self._frozen = create_state(tuned, transform), tuned.frozen
        step = make_train_step(tuned.model, tuned.split, transform, Loss())
        self._step: Any = jax.jit(step, donate_argnums=0)

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        return sharding.put_batch(batch, self.layout)

    def seconds(self, next_batch: Callable[[], Batch], steps: int) -> float:
        """A step's time, as `usage`."""
        return self.usage(next_batch, steps).seconds

    def usage(self, next_batch: Callable[[], Batch], steps: int = 1) -> Usage:
        """What a step takes, the mean of `steps` that go one into the other."""

        def several() -> None:
            for _ in range(steps):
                self._state, _ = self._step(self._state, self._frozen, next_batch(), self._key)
            jax.block_until_ready(self._state)

        with sharding.on(self.layout):
            jax.block_until_ready(self._state)
            return Usage(*(value / steps for value in usage.of(several)))

    def cost(self, batch: Batch) -> dict[str, float]:
        """Operations of a step, and bytes that it holds at most, as the compiler counts them."""
        compiled = self._compiled(batch)
        counted: Any = compiled.cost_analysis()
        return {"flops": counted["flops"], "bytes": held_bytes(compiled)}

    def compile_for(self, batch: Batch) -> float:
        """Compiles the step for batches of one shape, all that it takes from then on; its bytes."""
        self._step = self._compiled(batch)
        return held_bytes(self._step)

    def _compiled(self, batch: Batch) -> jax.stages.Compiled:
        with sharding.on(self.layout):
            return self._step.lower(self._state, self._frozen, batch, self._key).compile()


def held_bytes(compiled: jax.stages.Compiled) -> float:
    """Bytes of a program's arguments and temporaries."""
    memory: Any = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def trained(model: str | Config, method: Method) -> Trained:
    """A model that steps; "demo" has the embedded weights, other shapes random ones."""
    config = preset(model) if isinstance(model, str) else model
    checkpoint = embedded.backbone() if model == "demo" else None
    return Trained(initialize(config, method, layout=sharding.layout(), checkpoint=checkpoint))


def random_batch(config: Config, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """Rows without padding, `inputs` and `targets` tokens long."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(3, config.vocab_size, (rows, n), np.int32) for n in (inputs, targets)]
    return {
        "encoder_input_tokens": drawn[0],
        "decoder_target_tokens": drawn[1],
        "decoder_input_tokens": np.pad(drawn[1], ((0, 0), (1, 0)))[:, :-1],
    }


def load() -> dict[str, float]:
    """The machine's load average of a minute; warns if something else takes time."""
    average, cores = os.getloadavg()[0], os.cpu_count() or 1
    print(f"load average {average:.2f} on {cores} cores")
    if average > BUSY * cores:
        print("warning: the machine is busy; the numbers mean little", file=sys.stderr)
    return {"load_average": average, "cores": cores}


def in_turn(timed: Mapping[Name, Callable[[], Usage]], rounds: int) -> dict[Name, list[Usage]]:
    """What each takes in each round; in the first some are compiled."""
    found: dict[Name, list[Usage]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, one in timed.items():
            found[name].append(one())
    return found


def median(usages: Sequence[Usage]) -> Usage:
    return Usage(*map(statistics.median, zip(*usages, strict=True)))


def medians(timed: Mapping[Name, Callable[[], Usage]], rounds: int) -> dict[Name, Usage]:
    """The medians of each, timed in turn; the first round is left out."""
    return {name: median(usages[1:]) for name, usages in in_turn(timed, rounds).items()}


def by_key(found: Mapping[str, Usage]) -> dict[str, float]:
    """Every number under its own key, such as `peer_seconds` and `peer_minor_faults`."""
    return {
        f"{name}_{field}": value
        for name, used in found.items()
        for field, value in used._asdict().items()
    }


def parser(doc: str) -> argparse.ArgumentParser:
    """Flags of a step's shape, and `--json`."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--family", default="t5_1_1", choices=FAMILIES)
    found.add_argument("--size", default="small", help="of T5 v1.1; s_s, b_b, ... of T5Gemma")
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--input", type=int, default=128)
    found.add_argument("--target", type=int, default=8)
    found.add_argument("--prompt", type=int, default=20)
    found.add_argument("--json", type=Path)
    return found


def report(
    arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, float]]
) -> None:
    """Measures, and prints what was found beside settings and load; `--json` gets it too."""
    found = {**vars(arguments), **load(), **measure(arguments)}
    del found["json"]
    for name, value in found.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
