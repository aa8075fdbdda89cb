"""python benchmarks/epoch_time.py: does an epoch with less padding take less time?

Beside each measured ratio stands the one that `prompt_tuning.data.padding_report` predicts from
encoder positions alone.
"""

import collections
import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import steps
from absl import app, flags

from prompt_tuning import report
from prompt_tuning.data import catalogue, padding_report
from prompt_tuning.data.bucketing import bucketed, default_bounds, pad
from prompt_tuning.data.packing import Rows, pack, packed
from prompt_tuning.data.padding_report import FIXED
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.tokens import Tokens, in_memory
from prompt_tuning.methods import PromptTuning

_TASK = flags.FLAGS["task"]  # of padding_report, with data_dir, vocabulary, json, batch_size
_MODEL = flags.DEFINE_string("model", "demo", "A preset; all but demo have random weights.")
_PROMPTS = flags.DEFINE_list("prompt_lengths", ["20", "100"], "P, several by comma.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of each shape that are timed.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "Of the epoch; 0 for all.")

TARGETS, PACKED_TARGETS = 16, 64  # positions of a row
PACKED = 1024

Shape = tuple[str, int]  # batching and input length
Counts = dict[Shape, float]  # batches of an epoch


class Epoch:
    """An epoch in three layouts: how many batches of each shape, and one batch of each."""

    def __init__(self, examples: Tokens, prompt: int, rows: int) -> None:
        self.batches: dict[Shape, dict[str, np.ndarray]] = {}
        self._prompt, self._rows = prompt, rows
        chosen = list(itertools.islice(examples.endless(0), _EXAMPLES.value or len(examples)))
        self.lengths = [(len(source), len(target)) for source, target in chosen]
        row = max(PACKED, FIXED + prompt)
        in_rows = packed(chosen, rows, prompt, row, PACKED_TARGETS)
        self.counts = {
            "fixed": self._counted("fixed", bucketed(chosen, {FIXED: rows})),
            "bucketed": self._counted(
                "bucketed", bucketed(chosen, dict.fromkeys(default_bounds(FIXED), rows))
            ),
            "packed": self._counted("packed", ((row, batch) for batch in in_rows)),
        }
        inputs = [source for source, _ in self.lengths]
        base = padding_report.fixed(inputs, prompt).computed
        costs = {
            "bucketed": padding_report.bucketed(inputs, prompt),
            "packed": padding_report.packed(self.lengths, prompt, row, PACKED_TARGETS, rows),
        }
        self.predicted = {kind: cost.computed / base for kind, cost in costs.items()}

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
            return pack(
                batch,
                prompt_length=self._prompt,
                input_length=length,
                target_length=PACKED_TARGETS,
            )
        return pad(batch, length, TARGETS)


def measure(task: str, prompts: Sequence[int]) -> Iterator[dict[str, str | float]]:
    lengths = {"inputs": FIXED, "targets": TARGETS}
    examples = in_memory(seqio.get_mixture_or_task(task), "train", lengths, False, "")
    if examples is None:
        raise ValueError(f"{task}: not a task that fits in memory")
    for prompt in prompts:
        epoch = Epoch(examples, prompt, flags.FLAGS.batch_size)
        seconds = _step_times(epoch, prompt)
        whole = {
            kind: sum(count * seconds[shape] for shape, count in counts.items())
            for kind, counts in epoch.counts.items()
        }
        result: dict[str, str | float] = {"task": task, "prompt_length": prompt}
        result |= {"examples": len(epoch.lengths), "fixed_seconds": whole["fixed"]}
        for kind in ("bucketed", "packed"):
            result[f"{kind}_measured"] = whole[kind] / whole["fixed"]
            result[f"{kind}_predicted"] = epoch.predicted[kind]
        yield result


def _step_times(epoch: Epoch, prompt: int) -> dict[Shape, float]:
    """The median time of a step of each shape, all measured in turn."""
    trained = steps.Trained(_MODEL.value, PromptTuning(prompt))
    placed = {shape: trained.place(batch) for shape, batch in epoch.batches.items()}
    times: dict[Shape, list[float]] = collections.defaultdict(list)
    for round_ in range(1 + _STEPS.value):
        for shape, batch in placed.items():
            time = trained.seconds(lambda batch=batch: batch, 1)
            if round_:  # in the first each is compiled
                times[shape].append(time)
    return {shape: statistics.median(found) for shape, found in times.items()}


def main(argv: Sequence[str]) -> None:
    del argv
    machine = steps.load()
    names = steps.register(flags.FLAGS.data_dir, flags.FLAGS.vocabulary)
    wanted = [catalogue.full_name(task, names) for task in _TASK.value]
    found = [row for task in wanted for row in measure(task, [int(p) for p in _PROMPTS.value])]
    table = {
        f"{row['task']}, P = {row['prompt_length']}": {
            name: float(value)
            for name, value in row.items()
            if "_measured" in name or "_pred" in name
        }
        for row in found
    }
    print(report.table(table))
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
        report.write_json(
            flags.FLAGS.json, machine | settings | {"tasks": found, "geometric_mean": means}
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("task")
    app.run(main)
