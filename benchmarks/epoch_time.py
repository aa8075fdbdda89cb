"""python benchmarks/epoch_time.py: how long an epoch takes, in each layout and with the peer.

Ours are padded to 512 inputs, as the original pads; bucketed; packed. The peer pads each batch to
its longest row. Targets have the room that the task's longest one needs. All go through the same
shuffled examples.

A step's time depends on its shape alone, so ours is the sum, over the shapes of the epoch's
batches, of their number times the median time of a step of that shape. The peer has as many shapes
as batches: `--samples` of them, spread evenly over the batches in order of length from a random
first on, stand for the rest. All are timed in turn. Compilation is not in the epoch but beside it.
Ours steps with each of `--products`, the peer in float32 and in bfloat16.

Beside each ratio to the fixed length stands the one that `prompt_tuning.data.padding_report`
predicts from encoder positions alone.
"""

import restart

import collections
import contextlib
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import peer
import steps
import task_names
from absl import app, flags
from usage import Usage

from prompt_tuning.data import padding_report
from prompt_tuning.data.batching.bucketing import bucket_of, bucketed, default_bounds, pad
from prompt_tuning.data.batching.packing import Example, Rows, pack, packed
from prompt_tuning.data.batching.tokens import Tokens, in_memory
from prompt_tuning.data.catalogue import all_tasks
from prompt_tuning.data.padding_report import FIXED
from prompt_tuning.data.quiet import seqio
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import table as the_table
from prompt_tuning.methods import PromptTuning
from prompt_tuning.runtime import files
from prompt_tuning.t5.config import preset

# Among others task, data_dir, vocabulary, json, batch_size, packed_length, and target_length, of a
# packed row.
padding_report.define_flags()
_TASK = flags.FLAGS["task"]
_MODEL = flags.DEFINE_string("model", "demo", "A preset; its weights are random.")
_PROMPTS = flags.DEFINE_list("prompt_lengths", ["20", "100"], "P, several by comma.")
_PRODUCTS = flags.DEFINE_list("products", ["auto", "float32"], "PRODUCTS; ratios use the first.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of each shape that are timed.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Of the epoch; 0 for all.")
_PEER = flags.DEFINE_bool("peer", False, "Time PEFT as well.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "Batches that the peer's time is taken from.")

LONGEST_TARGET = 16

Shape = tuple[str, int]  # layout, and input length or number of the peer's batch
Counts = dict[Shape, float]  # batches of an epoch
Timed = tuple[str, Shape]  # one of PRODUCTS, or the peer's precision; and what it steps on


class Epoch:
    """An epoch in each layout: how many batches of each shape, and one batch of each."""

    def __init__(self, examples: Tokens, prompt: int, rows: int) -> None:
        self.batches: dict[Shape, dict[str, np.ndarray]] = {}
        self._prompt, self._rows = prompt, rows
        chosen = list(itertools.islice(examples.endless(0), _EXAMPLES.value or len(examples)))
        self.lengths = [(len(source), len(target)) for source, target in chosen]
        inputs, targets = zip(*self.lengths, strict=True)
        self._targets = bucket_of(max(targets), default_bounds(LONGEST_TARGET, 2))
        self._row = max(flags.FLAGS.packed_length, max(inputs) + prompt)
        shared = flags.FLAGS.target_length
        in_rows = packed(chosen, rows, prompt, self._row, shared)
        self.counts = {
            "fixed": self._counted("fixed", bucketed(chosen, {FIXED: rows})),
            "bucketed": self._counted(
                "bucketed", bucketed(chosen, dict.fromkeys(default_bounds(FIXED), rows))
            ),
            "packed": self._counted("packed", ((self._row, batch) for batch in in_rows)),
        }
        base = padding_report.fixed(inputs, prompt).computed
        costs = {
            "bucketed": padding_report.bucketed(inputs, prompt),
            "packed": padding_report.packed(self.lengths, prompt, self._row, shared, rows),
        }
        self.predicted = {kind: cost.computed / base for kind, cost in costs.items()}
        self.of_peer = sampled(chosen, rows) if _PEER.value else []

    def _counted(self, kind: str, batches: Iterable[tuple[int, Rows]]) -> Counts:
        counts: Counts = collections.defaultdict(float)
        for length, batch in batches:
            # The last batch of a shape counts by the rows that it has: they are few in a sample.
            counts[kind, length] += sum(map(bool, batch)) / self._rows
            if (kind, length) not in self.batches:
                self.batches[kind, length] = self._laid_out(kind, length, batch)
        return counts

    def _laid_out(self, kind: str, length: int, batch: Rows) -> dict[str, np.ndarray]:
        if kind == "packed":
            shared = flags.FLAGS.target_length
            sizes = {"prompt_length": self._prompt, "target_length": shared}
            return pack(batch, input_length=length, **sizes)
        return pad(batch, length, self._targets)


def sampled(examples: Sequence[Example], rows: int) -> list[dict[str, list[list[int]]]]:
    """Some of the peer's batches: every n-th in order of length, each padded to its longest row."""
    whole = range(0, len(examples) - rows + 1, rows)
    batches = [examples[i : i + rows] for i in whole]
    ordered = sorted(batches, key=lambda batch: max(len(source) for source, *_ in batch))
    places = np.random.default_rng(0).uniform() + np.arange(min(_SAMPLES.value, len(ordered)))
    chosen = [ordered[int(place * len(ordered) / len(places))] for place in places]
    longest = [[max(map(len, side)) for side in zip(*batch, strict=True)] for batch in chosen]
    return [
        peer.batch(pad([[example] for example in batch], *lengths))
        for batch, lengths in zip(chosen, longest, strict=True)
    ]


def measure(task: str, prompts: Sequence[int]) -> Iterator[dict[str, str | float]]:
    lengths = {"inputs": FIXED, "targets": LONGEST_TARGET}
    examples = in_memory(seqio.get_mixture_or_task(task), "train", lengths, False, "")
    if examples is None:
        raise UserError(f"{task}: not a task that fits in memory")
    if examples.inputs.max() >= preset(_MODEL.value).vocab_size:
        raise UserError(f"--vocabulary: has more ids than --model={_MODEL.value} has embeddings")
    for prompt in prompts:
        epoch = Epoch(examples, prompt, flags.FLAGS.batch_size)
        found = _step_times(epoch, prompt)
        median = {step: steps.median(times[1:]) for step, times in found.items()}
        result: dict[str, str | float] = {"task": task, "prompt_length": prompt}
        result |= {"examples": len(epoch.lengths)}
        best: dict[str, float] = {}
        for products in reversed(_PRODUCTS.value):
            prefix = "" if products == _PRODUCTS.value[0] else f"{products}_products_"
            whole: dict[str, float] = {}
            for kind, counts in epoch.counts.items():
                used = _sum({(products, at): count for at, count in counts.items()}, median)
                whole[kind] = used.seconds
                result |= _described(f"{prefix}{kind}", used, sum(counts.values()))
                result[f"{prefix}{kind}_compile_seconds"] = sum(
                    found[products, at][0].seconds - median[products, at].seconds for at in counts
                )
            best[products] = min(whole["bucketed"], whole["packed"])
        for kind in ("bucketed", "packed"):  # `whole` is that of the first of --products
            result[f"{kind}_measured"] = whole[kind] / whole["fixed"]
            result[f"{kind}_predicted"] = epoch.predicted[kind]
        ours = best[_PRODUCTS.value[0]]
        result["speedup_over_fixed_512"] = whole["fixed"] / ours
        if epoch.of_peer:
            batches = len(epoch.lengths) / flags.FLAGS.batch_size
            share = batches / len(epoch.of_peer)
            of_peer: dict[str, float] = {}
            for dtype in peer.PRECISIONS:
                sampled_steps = {(dtype, ("peer", i)): share for i in range(len(epoch.of_peer))}
                used = _sum(sampled_steps, median)
                of_peer[dtype] = used.seconds
                result |= _described(f"peer_{dtype}", used, batches)
                result[f"speedup_over_peer_{dtype}"] = used.seconds / ours
            result["peer_seconds"] = of_peer["float32"]
            result["speedup_over_peer"] = of_peer["float32"] / ours
            result["speedup_over_peer_best"] = min(of_peer.values()) / ours
        yield result


def _sum(counts: Mapping[Timed, float], median: Mapping[Timed, Usage]) -> Usage:
    """What so many steps of each kind take together."""
    terms = [[count * value for value in median[step]] for step, count in counts.items()]
    return Usage(*map(sum, zip(*terms, strict=True)))


def _described(name: str, used: Usage, batches: float) -> dict[str, float]:
    return {
        f"{name}_seconds": used.seconds,
        f"{name}_system_seconds_per_step": used.system_seconds / batches,
        f"{name}_minor_faults_per_step": used.minor_faults / batches,
    }


def _step_times(epoch: Epoch, prompt: int) -> dict[Timed, list[Usage]]:
    """What steps of each shape take, all measured in turn; the first is compiled."""
    config = preset(_MODEL.value, dropout_rate=steps.DROPOUT)
    timed: dict[Timed, Callable[[], Usage]] = {}
    for products in _PRODUCTS.value:
        model = steps.trained(dataclasses.replace(config, products=products), PromptTuning(prompt))
        for shape, batch in epoch.batches.items():
            placed = model.place(batch)
            timed[products, shape] = functools.partial(model.usage, lambda placed=placed: placed)
    with contextlib.ExitStack() as stack:
        for dtype in peer.PRECISIONS if epoch.of_peer else ():
            ask = stack.enter_context(peer.steps(config, prompt, epoch.of_peer, dtype))
            for i in range(len(epoch.of_peer)):
                timed[dtype, ("peer", i)] = functools.partial(ask, str(i))
        return steps.in_turn(timed, 1 + _STEPS.value)


def main(argv: Sequence[str]) -> None:
    del argv
    machine = steps.load()
    names = task_names.register(flags.FLAGS.data_dir, flags.FLAGS.vocabulary)
    wanted = [all_tasks.full_name(task, names) for task in _TASK.value]
    found = [row for task in wanted for row in measure(task, [int(p) for p in _PROMPTS.value])]
    table = {
        f"{row['task']}, P = {row['prompt_length']}": {
            name: float(value)
            for name, value in row.items()
            if name.endswith(("_measured", "_predicted")) or name.startswith("speedup")
        }
        for row in found
    }
    print(the_table.table(table))
    means = {
        f"{kind}_{what}, P = {prompt}": statistics.geometric_mean(
            float(row[f"{kind}_{what}"]) for row in found if row["prompt_length"] == int(prompt)
        )
        for prompt in _PROMPTS.value
        for kind in ("bucketed", "packed")
        for what in ("measured", "predicted")
    }
    for name, mean in means.items():
        print(f"geometric mean, {name}: {mean:.4f}")
    if flags.FLAGS.json:
        settings = {"model": _MODEL.value, "batch_size": flags.FLAGS.batch_size}
        files.write_json(
            flags.FLAGS.json, machine | settings | {"tasks": found, "geometric_mean": means}
        )


if __name__ == "__main__":
    app.run(main)
