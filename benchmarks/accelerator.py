"""python benchmarks/accelerator.py --json=FILE: what one accelerator card gives, in 8 minutes.

Needs jax, flax, optax and orbax with what they bring, jaxtyping, safetensors, sentencepiece and
tqdm; qwix for int8; and torch, transformers and PEFT for the peer, in the same Python. No network,
and nothing installed: a checkout is enough.

Each part runs in a process of its own, which has the card to itself, and has a share of the time;
what it leaves goes to the next ones. What fails, does not fit in memory or is out of time is a row
that says so. The file has what is measured so far. Weights and tokens are random, dropout is off.
"""

import restart

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mixed_tasks
import peer
import steps

from prompt_tuning import sharding
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runtime import files
from prompt_tuning.t5.config import T5Config, preset
from prompt_tuning.t5.network import T5
from prompt_tuning.transformer import int8
from prompt_tuning.transformer.paths import unflatten

Row = dict[str, Any]
BUDGET = 465  # seconds; what has begun ends with them
LEAST = 10  # seconds without which a part does not begin
FAILED = "failed"
PEER_PACKAGES = ("torch", "transformers", "peft")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "qwix", *PEER_PACKAGES)
MEMORY_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
PREFIX = "row "  # of what the process of a part prints


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of all measurements.

    Attributes:
      models: T5 v1.1 by size, for training.
      largest, remat: one that fits only with rematerialisation, and the kinds of it.
      decoding: for generation.
      batches: rows of a training step.
      inputs, targets, prompt: tokens of a row and vectors.
      tasks, new: rows of generation, one of each task, and tokens to make.
      matrix: side of the product.
      copied: float32 values of the copy.
      rounds, repeats: of a measurement; its result is the median over rounds.
    """

    models: Mapping[str, T5Config]
    largest: T5Config
    remat: tuple[str, ...]
    decoding: T5Config
    batches: tuple[int, ...]
    inputs: int
    targets: int
    prompt: int
    tasks: int
    new: int
    matrix: int
    copied: int
    rounds: int
    repeats: int


def _t5(size: str, scanned: bool = False) -> T5Config:
    return preset(f"t5_1_1_{size}", dtype="bfloat16", frozen_dtype="bfloat16", scan_layers=scanned)


# Layers of the larger ones are scanned: they compile in a fraction of the time.
FULL = Scale(
    models={"base": _t5("base"), "large": _t5("large", True), "xl": _t5("xl", True)},
    largest=_t5("xxl", True),
    remat=("full", "minimal"),
    decoding=_t5("xl"),
    batches=(16, 32),
    inputs=512,
    targets=8,
    prompt=100,
    tasks=32,
    new=32,
    matrix=8192,
    copied=2**28,
    rounds=3,
    repeats=5,
)
_NANO = dataclasses.replace(
    preset("nano", dtype="bfloat16", frozen_dtype="bfloat16"),
    num_encoder_layers=1,
    num_decoder_layers=1,
)
SMOKE = Scale(
    models={"nano": _NANO},
    largest=dataclasses.replace(_NANO, scan_layers=True),
    remat=("full",),
    decoding=_NANO,
    batches=(2,),
    inputs=6,
    targets=2,
    prompt=3,
    tasks=2,
    new=2,
    matrix=64,
    copied=2**10,
    rounds=1,
    repeats=1,
)


class Part(NamedTuple):
    """Rows that are measured in one process, and its share of the time."""

    rows: Callable[[], Iterator[Row]]
    share: float


def parts(scale: Scale) -> dict[str, Part]:
    found = {"rates": Part(lambda: rates(scale), 25)}
    for size, config in scale.models.items():
        share = 50 if config.scan_layers else 75
        found[f"ours_{size}"] = Part(lambda s=size, c=config: our_steps(scale, s, c), share)
        found[f"peer_{size}"] = Part(lambda s=size, c=config: peer_steps(scale, s, c), 42)
    return found | {
        "largest": Part(lambda: largest_steps(scale), 45),
        "int8": Part(lambda: int8_steps(scale), 25),
        "generation": Part(lambda: generation(scale, "bfloat16"), 40),
        "generation_int8": Part(lambda: generation(scale, int8.INT8), 35),
        "peer_generation": Part(lambda: peer_generation(scale), 20),
    }


def rates(scale: Scale) -> Iterator[Row]:
    """The rate of a large bfloat16 product, and of a copy: bytes read and written."""
    device = jax.devices()[0]
    row = {"device": device.device_kind, "platform": device.platform}
    n = scale.matrix
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    multiply = jax.jit(jnp.matmul)
    seconds = timed(lambda: multiply(a, b), scale.rounds, 4 * scale.repeats)
    yield row | {"what": "product", "seconds": seconds, "flops_per_second": 2 * n**3 / seconds}
    x = jnp.ones(scale.copied, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = timed(lambda: copy(x), scale.rounds, 4 * scale.repeats)
    yield row | {"what": "copy", "seconds": seconds, "bytes_per_second": 2 * x.nbytes / seconds}


def timed(call: Callable[[], Any], rounds: int, repeats: int) -> float:
    """Seconds of a call of a compiled function, the median over rounds of `repeats` calls."""
    jax.block_until_ready(call())
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready([call() for _ in range(repeats)][-1])
        found.append((time.perf_counter() - began) / repeats)
    return statistics.median(found)


def our_steps(scale: Scale, size: str, config: T5Config) -> Iterator[Row]:
    variants = {"einsum": {}, "cudnn": {"attention": "cudnn"}}
    yield from step_rows(scale, size, config, variants)


def largest_steps(scale: Scale) -> Iterator[Row]:
    variants = {f"scan, remat {kind}": {"remat": kind} for kind in scale.remat}
    yield from step_rows(scale, "xxl", scale.largest, variants)


def int8_steps(scale: Scale) -> Iterator[Row]:
    size, config = list(scale.models.items())[-1]
    narrow = dataclasses.replace(config, frozen_dtype=int8.INT8)
    yield from step_rows(scale, size, narrow, {"einsum, int8": {}})


def step_rows(
    scale: Scale, size: str, config: T5Config, variants: Mapping[str, Mapping[str, Any]]
) -> Iterator[Row]:
    """Our training steps with one set of weights; `variants` change the configuration."""
    method = PromptTuning(scale.prompt)
    about = {"what": "step", "size": size, "side": "ours"}
    try:
        tuned = random_model(config, method)
    except Exception as error:  # one that does not fit must not cost the other parts
        yield about | failed(error)
        return
    for batch, (variant, changes) in itertools.product(scale.batches, variants.items()):
        changed = dataclasses.replace(config, **changes)
        row = about | {"variant": variant, "batch": batch}
        yield row | attempt(
            lambda changed=changed, batch=batch: our_step(
                scale, dataclasses.replace(tuned, model=T5(changed, method)), batch
            )
        )


def our_step(scale: Scale, tuned: TunedModel, batch: int) -> Row:
    config = tuned.model.config
    model = steps.Trained(dataclasses.replace(tuned, trained=jax.tree.map(jnp.copy, tuned.trained)))
    placed = model.place(steps.random_batch(config, batch, scale.inputs, scale.targets))
    began = time.perf_counter()
    held = model.compile_for(placed)
    compiling = time.perf_counter() - began
    times = [model.seconds(lambda: placed, scale.repeats) for _ in range(1 + scale.rounds)][1:]
    return {"bytes": held, "compile_seconds": compiling} | step_numbers(
        scale, config, batch, statistics.median(times)
    )


def step_numbers(scale: Scale, config: T5Config, batch: int, seconds: float) -> Row:
    return {
        "seconds": seconds,
        "tokens_per_second": batch * scale.inputs / seconds,
        "flops": step_flops(config, batch, scale.inputs, scale.targets, scale.prompt),
    }


def peer_steps(scale: Scale, size: str, config: T5Config) -> Iterator[Row]:
    """The peer's training steps, as they are and with each layer compiled."""
    about = {"what": "step", "size": size, "side": "peer"}
    if fault := fault_of_peer(scale):
        yield about | {FAILED: fault}
        return
    import step_torch
    import torch

    batches = [
        peer.batch(steps.random_batch(config, rows, scale.inputs, scale.targets))
        for rows in scale.batches
    ]
    settings = peer.step_settings(config, scale.prompt, batches, "bfloat16")
    try:
        model = step_torch.Trained(settings | {"device": torch_device()})
    except Exception as error:
        yield about | failed(error)
        return

    def measured(index: int) -> Row:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        took = [wall(lambda: model.step(index)) for _ in range(2 + scale.rounds * scale.repeats)]
        row = step_numbers(scale, config, scale.batches[index], statistics.median(took[2:]))
        return row | {"compile_seconds": took[0]} | torch_memory()

    for variant in ("eager", "compiled"):
        if variant == "compiled":
            model.compile_blocks()
        for index, rows in enumerate(scale.batches):
            row = about | {"variant": f"{variant}, {model.attention}", "batch": rows}
            yield row | attempt(lambda index=index: measured(index))


def generation(scale: Scale, frozen_dtype: str) -> Iterator[Row]:
    """Greedy decoding, one prompt for all rows and one for each."""
    config = dataclasses.replace(scale.decoding, frozen_dtype=frozen_dtype)
    about = {"what": "generation", "side": "ours", "batch": scale.tasks}
    try:
        tuned = random_model(config, Method())
        measured = mixed_tasks.ours(generating(scale), config, tuned.frozen, tuned.layout)
    except Exception as error:
        yield about | {"variant": frozen_dtype} | failed(error)
        return
    for kind, name in (("single", "one task"), ("mixed", f"{scale.tasks} tasks")):
        row = about | {"variant": f"{name}, {frozen_dtype}"}
        yield row | attempt(
            lambda kind=kind: decoding_numbers(scale, measured[kind]) | jax_memory()
        )


def peer_generation(scale: Scale) -> Iterator[Row]:
    about = {"what": "generation", "side": "peer", "batch": scale.tasks}
    if fault := fault_of_peer(scale):
        yield about | {FAILED: fault}
        return
    import mixed_tasks_torch
    import usage

    settings = mixed_tasks.peer_settings(generating(scale), scale.decoding, "bfloat16")
    try:
        model = mixed_tasks_torch.Decoder(settings | {"device": torch_device()})
    except Exception as error:
        yield about | failed(error)
        return
    row = about | {"variant": "one task, bfloat16"}
    yield row | attempt(
        lambda: decoding_numbers(scale, lambda: usage.of(model.batch)) | torch_memory()
    )


def generating(scale: Scale) -> argparse.Namespace:
    """Settings of mixed_tasks.py."""
    return argparse.Namespace(
        tasks=scale.tasks, input=scale.inputs, prompt=scale.prompt, new=scale.new
    )


def decoding_numbers(scale: Scale, measure: Callable[[], Any]) -> Row:
    seconds = statistics.median([measure().seconds for _ in range(1 + scale.rounds)][1:])
    return {"seconds": seconds, "tokens_per_second": scale.tasks * scale.new / seconds}


def random_model(config: T5Config, method: Method) -> TunedModel:
    """A model on the first device; each leaf is made there, by a program of its shape alone."""
    layout = sharding.layout(devices=jax.devices()[:1])
    split = ParamSplit.of(config, method)
    leaves = {}
    for i, (path, leaf) in enumerate(sorted(split.shapes.items())):
        dtype = int8.INT8 if int8.is_int8(leaf) else leaf.dtype.name
        made = _random_leaf(jax.random.key(i), path.rpartition("/")[2], leaf.shape, dtype)
        leaves[path] = jax.device_put(made, layout.everywhere)
    return TunedModel(T5(config, method), split, *split.split(unflatten(leaves)), layout)


def _leaf(key: jax.Array, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    if name == "scale":
        return jnp.ones(shape, dtype)
    value = jax.random.normal(key, shape, jnp.float32)
    value = value * shape[-2] ** -0.5 if name == "kernel" else value
    return int8.quantize(value, name) if dtype == int8.INT8 else value.astype(dtype)


_random_leaf = jax.jit(_leaf, static_argnums=(1, 2, 3))


def step_flops(config: T5Config, batch: int, inputs: int, targets: int, prompt: int) -> float:
    """Operations of the products of a prompt-tuning step, without any that are recomputed.

    A weight's product has one more in the backward pass, for the gradient of its input; attention's
    two products have two more each.
    """
    joined = config.num_heads * config.head_dim
    mlp = (len(config.activations) + 1) * config.d_model * config.d_ff
    projection = config.d_model * joined
    keys = prompt + inputs
    encoder = config.num_encoder_layers * keys * (4 * projection + mlp)
    per_token = 4 * projection + 2 * projection + mlp  # self-attention, cross-attention's q and out
    decoder = config.num_decoder_layers * (targets * per_token + keys * 2 * projection)
    weights = encoder + decoder + targets * config.d_model * config.vocab_size
    pairs = config.num_encoder_layers * keys**2
    pairs += config.num_decoder_layers * targets * (targets + keys)
    return 2.0 * batch * (2 * weights + 3 * 2 * joined * pairs)


def attempt(measure: Callable[[], Row]) -> Row:
    try:
        return measure()
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> Row:
    """What a row says in place of its numbers."""
    text = str(error)
    if any(words in text for words in ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")):
        return {FAILED: "out of memory"}
    lines = text.splitlines() or [""]
    return {FAILED: f"{type(error).__name__}: {lines[0][:200]}"}


def fault_of_peer(scale: Scale) -> str:
    missing = [name for name in PEER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "torch sees no GPU" if scale is FULL and torch_device() == "cpu" else ""


def wall(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_memory() -> Row:
    import torch

    return {"bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}


def jax_memory() -> Row:
    """The most that this process has held so far."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"bytes": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


def printed(command: Sequence[str | Path], seconds: float) -> Iterator[Row]:
    """Yields the rows that a process prints; ends it, and all that it has started, in time."""
    environment = dict(os.environ)
    if not os.environ.keys() & set(MEMORY_VARIABLES):
        environment[MEMORY_VARIABLES[0]] = "0.92"  # of the card; JAX takes 0.75 by default
    late = threading.Event()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:

        def stop() -> None:
            late.set()
            end(process)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert process.stdout
            for line in process.stdout:
                if line.startswith(PREFIX):
                    yield json.loads(line.removeprefix(PREFIX))
        finally:
            timer.cancel()
            end(process)
    if late.is_set():
        yield {FAILED: f"stopped after {seconds:.0f} s"}
    elif process.returncode:
        yield {FAILED: f"ended with status {process.returncode}"}


def end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Report:
    """The rows so far, and the file that has them."""

    def __init__(self, path: Path | None, scale: Scale) -> None:
        self._path, self._began = path, time.monotonic()
        settings = {
            name: value
            for name, value in dataclasses.asdict(scale).items()
            if isinstance(value, int | tuple)
        }
        self._about = {"versions": versions(), "settings": settings}
        self.rows: list[Row] = []

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def add(self, part: str, row: Row) -> None:
        self.rows.append({"part": part, **row})
        self.rows[-1] |= {"share_of_product_rate": share} if (share := self._share(row)) else {}
        print(f"{self.elapsed:6.0f} s  {part}: {line(self.rows[-1])}", file=sys.stderr, flush=True)
        if self._path:
            files.write_json(self._path, self.found())

    def found(self) -> Row:
        return {
            **self._about,
            "elapsed_seconds": self.elapsed,
            "speedup_over_peer_best": speedups(self.rows),
            "rows": self.rows,
        }

    def _share(self, row: Row) -> float | None:
        rate = next((r["flops_per_second"] for r in self.rows if "flops_per_second" in r), None)
        return row["flops"] / row["seconds"] / rate if rate and "flops" in row else None


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def speedups(rows: Iterable[Row]) -> dict[str, float]:
    """Our best rate over the peer's best, by model and batch; bfloat16 on both sides."""
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        if "tokens_per_second" not in row or row["part"] == "largest" or "int8" in row["variant"]:
            continue
        of = best.setdefault(f"{row.get('size', 'generation')}, batch {row['batch']}", {})
        of[row["side"]] = max(of.get(row["side"], 0.0), row["tokens_per_second"])
    return {name: of["ours"] / of["peer"] for name, of in best.items() if len(of) == 2}


def line(row: Row) -> str:
    """A row in words."""
    names = ("device", "what", "size", "side", "variant", "batch")
    about = " ".join(str(row[name]) for name in names if name in row)
    numbers = [
        f"{row[name] / unit:.4g} {words}"
        for name, unit, words in (
            ("flops_per_second", 1e12, "TFLOP/s"),
            ("bytes_per_second", 1e9, "GB/s"),
            ("tokens_per_second", 1, "tokens/s"),
            ("bytes", 2**30, "GiB"),
        )
        if name in row
    ]
    return ", ".join([about or row["part"], *numbers, *([row[FAILED]] if FAILED in row else [])])


def table(found: Row) -> str:
    """The report in Markdown."""
    lines = [f"{name} {version}" for name, version in found["versions"].items()]
    out = [", ".join(lines), ""]
    for row in found["rows"]:
        if row["part"] == "rates":
            out.append(f"- {line(row)}")
    columns = {
        "what": "",
        "size": "",
        "side": "",
        "variant": "",
        "batch": "",
        "tokens/s": "tokens_per_second",
        "share of product rate": "share_of_product_rate",
        "GiB": "bytes",
        "": FAILED,
    }
    out += ["", f"| {' | '.join(columns)} |", "|---|---|---|---|---:|---:|---:|---:|---|"]
    for row in found["rows"]:
        if row["part"] == "rates":
            continue
        cells = {name: row.get(key or name, "") for name, key in columns.items()}
        cells["what"] = row.get("what", row["part"])
        for name, unit, form in (
            ("tokens/s", 1, ",.0f"),
            ("share of product rate", 1, ".2f"),
            ("GiB", 2**30, ".1f"),
        ):
            cells[name] = format(cells[name] / unit, form) if cells[name] != "" else ""
        out.append(f"| {' | '.join(map(str, cells.values()))} |")
    out += ["", "| ours / peer, each one's best | tokens/s |", "|---|---:|"]
    out += [f"| {name} | {ratio:.2f} |" for name, ratio in found["speedup_over_peer_best"].items()]
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, all in this process")
    parser.add_argument("--parts", help="names by comma, of all those that are in the file")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for everything")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # one, as the process of a part
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else FULL
    known = parts(scale)
    if arguments.part:
        if not arguments.part.startswith("peer") and jax.default_backend() == "cpu":
            sys.exit("JAX sees no accelerator; --smoke tries this on a CPU")
        for row in known[arguments.part].rows():
            print(PREFIX + files.to_json(row), flush=True)
        return
    wanted = arguments.parts.split(",") if arguments.parts else list(known)
    if unknown := set(wanted) - set(known):
        parser.error(f"--parts: no {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    report, until = Report(arguments.json, scale), 0.0
    for name in wanted:
        until += arguments.seconds * known[name].share / sum(known[each].share for each in wanted)
        seconds = until - report.elapsed
        if arguments.smoke:
            rows = known[name].rows()
        elif seconds < LEAST:
            rows = iter([{FAILED: "left out: no time"}])
        else:
            rows = printed([sys.executable, Path(__file__), f"--part={name}"], seconds)
        for row in rows:
            report.add(name, row)
    print(table(report.found()))
    if all(FAILED in row for row in report.rows):
        sys.exit("nothing was measured")


if __name__ == "__main__":
    main()
