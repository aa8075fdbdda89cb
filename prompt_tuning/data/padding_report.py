"""python -m prompt_tuning.data.padding_report: what padding costs, and what batching saves.

The cost of an epoch is the number of encoder positions that it computes, the prompt's included,
relative to one example per row at the fixed length of 512 to which the original code pads.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

from absl import flags

from prompt_tuning import embedded
from prompt_tuning.cli import plain_command
from prompt_tuning.data import tasks
from prompt_tuning.data.batching.bucketing import bucket_of, default_bounds
from prompt_tuning.data.batching.packing import WINDOW, assign_rows
from prompt_tuning.data.catalogue import all_tasks
from prompt_tuning.data.catalogue.text_task import TFDS
from prompt_tuning.data.flags import define_skip_bad_rows
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import table as the_table
from prompt_tuning.runtime import files

FIXED = 512


@dataclasses.dataclass(frozen=True)
class Cost:
    """Encoder positions of an epoch: real ones (tokens and prompt), and all that are computed."""

    real: int
    computed: int

    @property
    def share(self) -> float:
        return self.real / self.computed


def fixed(lengths: Sequence[int], prompt: int) -> Cost:
    """Cost of one example per row of `FIXED` positions and the prompt."""
    return Cost(sum(lengths) + prompt * len(lengths), (FIXED + prompt) * len(lengths))


def bucketed(lengths: Sequence[int], prompt: int) -> Cost:
    """Cost of one example per row of its bucket's length and the prompt."""
    bounds = default_bounds(FIXED)
    computed = sum(bucket_of(length, bounds) + prompt for length in lengths)
    return Cost(sum(lengths) + prompt * len(lengths), computed)


def packed(
    lengths: Sequence[tuple[int, int]], prompt: int, row: int, targets: int, batch: int
) -> Cost:
    """Cost of rows of `row` positions, prompts included, filled as by `packing.packed`."""
    rows, stream = 0, iter(lengths)
    while window := list(itertools.islice(stream, WINDOW * batch)):
        sizes = [(source + prompt, target) for source, target in window]
        rows += len(assign_rows(sizes, row, targets))
    real = sum(source for source, _ in lengths) + prompt * len(lengths)
    return Cost(real, rows * row)


def lengths_of(task: str, target_length: int) -> Iterator[tuple[int, int]]:
    """Yields the lengths of each training example's input and target, end tokens included."""
    check_prepared(seqio.get_mixture_or_task(task), "train")
    features = {"inputs": FIXED, "targets": target_length}
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        features, split="train", shuffle=True, seed=0, num_epochs=1
    )
    for example in dataset.as_numpy_iterator():
        yield len(example["inputs"]), len(example["targets"])


def measure(
    task: str, *, prompt_length: int, packed_length: int, target_length: int, batch_size: int
) -> dict[str, str | float]:
    """Shares of real positions in a task's epoch, and its costs relative to the fixed length."""
    lengths = list(lengths_of(task, target_length))
    inputs = [source for source, _ in lengths]
    base, buckets = fixed(inputs, prompt_length), bucketed(inputs, prompt_length)
    rows = packed(lengths, prompt_length, packed_length, target_length, batch_size)
    return {
        "task": task,
        "real_token_share": base.share,
        "bucketed_real_token_share": buckets.share,
        "packed_real_token_share": rows.share,
        "bucketed_cost": buckets.computed / base.computed,
        "packed_cost": rows.computed / base.computed,
    }


def main(
    *,
    names: Sequence[str],
    data_dir: str | None,
    skip_bad_rows: int | None,
    vocabulary: str,
    json: str | None,
    **lengths: int,
) -> None:
    bad_rows = BadRows(skip_bad_rows or 0)
    shortest = FIXED + lengths["prompt_length"]
    if lengths["packed_length"] < shortest:
        raise UserError(
            f"--packed_length={lengths['packed_length']}: a row must hold an input of {FIXED} "
            f"tokens and its prompt; give at least {shortest}"
        )
    registered = all_tasks.register(tasks.vocabulary(vocabulary), data_dir or TFDS, bad_rows)
    costs = [measure(all_tasks.full_name(name, registered), **lengths) for name in names]
    means = {
        name: math.exp(statistics.fmean(math.log(float(row[name])) for row in costs))
        for name in ("bucketed_cost", "packed_cost")
    }
    table = {
        str(row["task"]): {k: float(v) for k, v in row.items() if k != "task"} for row in costs
    }
    print(the_table.table(table | {"geometric mean": means}))
    if skipped := bad_rows.summary():
        print(skipped)
    if json:
        files.write_json(json, {"tasks": costs, "geometric_mean": means})


def define_flags() -> plain_command.Flags:
    return {
        "names": flags.DEFINE_list(
            "task", None, "Tasks, or short names such as boolq.", required=True
        ),
        "data_dir": flags.DEFINE_string(
            "data_dir", None, "Folder of local data sets, instead of TFDS."
        ),
        "skip_bad_rows": define_skip_bad_rows(),
        "vocabulary": flags.DEFINE_string(
            "vocabulary", embedded.vocabulary(), "SentencePiece model."
        ),
        "json": flags.DEFINE_string("json", None, "File to write the numbers to."),
        "prompt_length": flags.DEFINE_integer(
            "prompt_length", 100, "Length of the prompt.", lower_bound=0
        ),
        "packed_length": flags.DEFINE_integer(
            "packed_length", 1024, "Positions of a packed row.", lower_bound=1
        ),
        "target_length": flags.DEFINE_integer(
            "target_length", 64, "Target positions of a packed row.", lower_bound=1
        ),
        "batch_size": flags.DEFINE_integer("batch_size", 32, "Rows per batch.", lower_bound=1),
    }


if __name__ == "__main__":
    plain_command.main(main, define_flags)
