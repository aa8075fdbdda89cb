"""Times batches whose rows are of different tasks, against one task for all rows, and against one
task after another.

A backbone with random weights and prompts, greedy decoding; medians of alternating measurements
within one run. Ours decodes with PRODUCTS = 'auto' and, one task for all rows, with 'float32'; the
peer in float32 and in bfloat16. It cannot mix prompts: it takes one task after another.
"""

import restart

import argparse
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peer
import steps
import usage
from usage import Usage

from prompt_tuning import Model, families, sharding
from prompt_tuning.families import preset
from prompt_tuning.methods import Method
from prompt_tuning.model.tuned import initialize
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.testing import Numbers
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import Params

Timed = dict[str, Callable[[], Usage]]
PEER_WORDS = ("batch", "sequential")  # what mixed_tasks_torch.py can be asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="t5_1_1", choices=steps.FAMILIES)
    parser.add_argument("--size", default="small", help="of T5 v1.1; s_s, b_b, ... of T5Gemma")
    parser.add_argument("--tasks", type=int, default=64, help="and rows, one of each")
    parser.add_argument("--input", type=int, default=16, help="tokens of a row")
    parser.add_argument("--prompt", type=int, default=20)
    parser.add_argument("--new", type=int, default=8, help="tokens to make")
    parser.add_argument("--repeats", type=int, default=6, help="of each; the first is left out")
    parser.add_argument("--one_task", action="store_true", help="leave out rows of several tasks")
    parser.add_argument("--peer", action="store_true", help="time PEFT as well")
    parser.add_argument("--json", type=Path)
    steps.report(parser.parse_args(), measure)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    config = preset(f"{arguments.family}_{arguments.size}")
    layout = sharding.layout()
    backbone = initialize(config, Method(), layout=layout).frozen
    exact = ours(arguments, dataclasses.replace(config, products="float32"), backbone, layout)
    timed = ours(arguments, config, backbone, layout)
    timed["single_float32_products"] = exact["single"]
    with contextlib.ExitStack() as stack:
        for dtype in peer.PRECISIONS if arguments.peer else ():
            settings = peer_settings(arguments, config, dtype)
            ask = stack.enter_context(peer.timed("mixed_tasks_torch.py", settings))
            words = {f"peer_{dtype}_{word}": functools.partial(ask, word) for word in PEER_WORDS}
            timed |= words
        if arguments.one_task:
            timed = {k: time for k, time in timed.items() if k.endswith(("single", "batch"))}
            timed["single_float32_products"] = exact["single"]
        median = steps.medians(timed, arguments.repeats)
    seconds = {name: used.seconds for name, used in median.items()}
    tokens = arguments.tasks * arguments.new
    found = steps.by_key(median) | {"one_task_tokens_per_second": tokens / seconds["single"]}
    if not arguments.one_task:
        found |= {
            "mixed_over_single": seconds["single"] / seconds["mixed"],
            "mixed_over_sequential": seconds["sequential"] / seconds["mixed"],
            "tokens_per_second": tokens / seconds["mixed"],
        }
    if arguments.peer:
        batch = {dtype: seconds[f"peer_{dtype}_batch"] for dtype in peer.PRECISIONS}
        found |= {
            "peer_batch_seconds": batch["float32"],
            "peer_tokens_per_second": tokens / batch["float32"],
            "generation_over_peer": batch["float32"] / seconds["single"],
            "generation_over_peer_best": min(batch.values()) / seconds["single"],
        }
    if arguments.peer and not arguments.one_task:
        sequential = {dtype: seconds[f"peer_{dtype}_sequential"] for dtype in peer.PRECISIONS}
        found |= {
            "peer_sequential_seconds": sequential["float32"],
            "mixed_over_peer_sequential": sequential["float32"] / seconds["mixed"],
            "mixed_over_peer_best_sequential": min(sequential.values()) / seconds["mixed"],
        }
    return found


def ours(
    arguments: argparse.Namespace, config: Config, backbone: Params, layout: sharding.Layout
) -> Timed:
    """Generation by a mixed batch, by a batch of one task, and by one task after another."""
    rng = np.random.default_rng(0)
    width = config.stack("encoder").width
    sizes = {"capacity": arguments.tasks, "length": arguments.prompt}
    room = PromptBank.empty(width, layout.mesh, **sizes)
    model = Model(config, backbone, Numbers(), layout, batch_size=arguments.tasks, prompts=room)
    names = [f"task{i}" for i in range(arguments.tasks)]
    for name in names:
        model.add_task(name, rng.normal(size=(arguments.prompt, width)).astype(np.float32))
    ids = rng.integers(2, config.vocab_size, (arguments.tasks, arguments.input - 1))
    texts = [" ".join(map(str, row)) for row in ids]

    def generate(calls: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Usage:
        def all_calls() -> None:
            for some, tasks in calls:
                model.generate(some, tasks, max_tokens=arguments.new)

        return usage.of(all_calls)

    each = [([text], [name]) for text, name in zip(texts, names, strict=True)]
    return {
        "mixed": lambda: generate([(texts, names)]),
        "single": lambda: generate([(texts, names[:1] * len(names))]),
        "sequential": lambda: generate(each),
    }


def peer_settings(arguments: argparse.Namespace, config: Config, dtype: str) -> dict[str, Any]:
    """Settings of mixed_tasks_torch.py."""
    settings = {name: getattr(arguments, name) for name in ("tasks", "input", "prompt", "new")}
    fields = families.of(config).huggingface.config_fields(config, np.dtype("float32"))
    return settings | {"config": fields, "dtype": dtype}


if __name__ == "__main__":
    main()
