"""Times batches whose rows are of different tasks, against one task for all rows, and against one
task after another.

T5 v1.1 with random weights and prompts, greedy decoding; medians of alternating measurements
within one run. The peer cannot mix prompts: it takes one task after another.
"""

import argparse
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peer
import steps

from prompt_tuning import Model, sharding
from prompt_tuning.checkpoint.formats import huggingface
from prompt_tuning.methods import Method
from prompt_tuning.model.tuned import initialize
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.t5.config import T5Config, preset
from prompt_tuning.testing import Numbers

Timed = dict[str, Callable[[], float]]
PEER_WORDS = ("batch", "sequential")  # what mixed_tasks_torch.py can be asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", help="of T5 v1.1")
    parser.add_argument("--tasks", type=int, default=64, help="and rows, one of each")
    parser.add_argument("--input", type=int, default=16, help="tokens of a row")
    parser.add_argument("--prompt", type=int, default=20)
    parser.add_argument("--new", type=int, default=8, help="tokens to make")
    parser.add_argument("--repeats", type=int, default=6, help="of each; the first is left out")
    parser.add_argument("--peer", action="store_true", help="time PEFT as well")
    parser.add_argument("--json", type=Path)
    steps.report(parser.parse_args(), measure)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    config = preset(f"t5_1_1_{arguments.size}")
    count = arguments.tasks
    with contextlib.ExitStack() as stack:
        timed = ours(arguments, config)
        if arguments.peer:
            settings = peer_settings(arguments, config)
            ask = stack.enter_context(peer.timed("mixed_tasks_torch.py", settings))
            timed |= {f"peer_{word}": functools.partial(ask, word) for word in PEER_WORDS}
        median = steps.medians(timed, arguments.repeats)
    found = {f"{name}_seconds": value for name, value in median.items()}
    found |= {
        "mixed_over_single": median["single"] / median["mixed"],
        "mixed_over_sequential": median["sequential"] / median["mixed"],
        "tokens_per_second": count * arguments.new / median["mixed"],
    }
    if arguments.peer:
        found["mixed_over_peer_sequential"] = median["peer_sequential"] / median["mixed"]
        found["peer_tokens_per_second"] = count * arguments.new / median["peer_batch"]
        found["generation_over_peer"] = median["peer_batch"] / median["single"]
    return found


def ours(arguments: argparse.Namespace, config: T5Config) -> Timed:
    layout, rng = sharding.layout(), np.random.default_rng(0)
    backbone = initialize(config, Method(), layout=layout).frozen
    sizes = {"capacity": arguments.tasks, "length": arguments.prompt}
    room = PromptBank.empty(config.d_model, layout.mesh, **sizes)
    model = Model(config, backbone, Numbers(), layout, batch_size=arguments.tasks, prompts=room)
    names = [f"task{i}" for i in range(arguments.tasks)]
    for name in names:
        model.add_task(name, rng.normal(size=(arguments.prompt, config.d_model)).astype(np.float32))
    ids = rng.integers(2, config.vocab_size, (arguments.tasks, arguments.input - 1))
    texts = [" ".join(map(str, row)) for row in ids]

    def seconds(calls: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
        began = time.perf_counter()
        for some, tasks in calls:
            model.generate(some, tasks, max_tokens=arguments.new)
        return time.perf_counter() - began

    each = [([text], [name]) for text, name in zip(texts, names, strict=True)]
    return {
        "mixed": lambda: seconds([(texts, names)]),
        "single": lambda: seconds([(texts, names[:1] * len(names))]),
        "sequential": lambda: seconds(each),
    }


def peer_settings(arguments: argparse.Namespace, config: T5Config) -> dict[str, Any]:
    settings = {name: getattr(arguments, name) for name in ("tasks", "input", "prompt", "new")}
    return settings | {"config": huggingface.config_fields(config, np.dtype("float32"))}


if __name__ == "__main__":
    main()
