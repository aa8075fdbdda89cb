"""python -m prompt_tuning.data.padding_report: what padding costs, and what batching saves.

An epoch's cost is the encoder positions that it computes, the prompt's included, relative to one
example a row at the fixed length of 512 that the original code pads every task to.
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
from prompt_tuning.data.flags import SKIP_BAD_ROWS
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.evaluation import table as the_table
from prompt_tuning.runtime import files

_TASK = flags.DEFINE_list("task", None, "Task names, or benchmark names such as boolq.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of local data sets, instead of TFDS.")
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.")
_PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 100, "P.")
_VOCABULARY = flags.DEFINE_string("vocabulary", embedded.vocabulary(), "A SentencePiece model.")
_PACKED_LENGTH = flags.DEFINE_integer("packed_length", 1024, "Positions of a packed row.")
_TARGET_LENGTH = flags.DEFINE_integer("target_length", 64, "Target positions of a packed row.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows of a batch.")

FIXED = 512


@dataclasses.dataclass(frozen=True)
class Cost:
    """An epoch: encoder positions that are real (tokens and prompt), and all that are computed."""

    real: int
    computed: int

    @property
    def share(self) -> float:
        return self.real / self.computed


def fixed(lengths: Sequence[int], prompt: int) -> Cost:
    """One example a row of `FIXED` positions and the prompt."""
    return Cost(sum(lengths) + prompt * len(lengths), (FIXED + prompt) * len(lengths))


def bucketed(lengths: Sequence[int], prompt: int) -> Cost:
    """One example a row of its bucket's length and the prompt."""
    bounds = default_bounds(FIXED)
    computed = sum(bucket_of(length, bounds) + prompt for length in lengths)
    return Cost(sum(lengths) + prompt * len(lengths), computed)


def packed(
    lengths: Sequence[tuple[int, int]], prompt: int, row: int, targets: int, batch: int
) -> Cost:
    """Rows of `row` positions (prompts included) and `targets`, shared as in `packing.packed`."""
    rows, stream = 0, iter(lengths)
    while window := list(itertools.islice(stream, WINDOW * batch)):
        sizes = [(source + prompt, target) for source, target in window]
        rows += len(assign_rows(sizes, row, targets))
    real = sum(source for source, _ in lengths) + prompt * len(lengths)
    return Cost(real, rows * row)


def lengths_of(task: str, target_length: int) -> Iterator[tuple[int, int]]:
    """Tokens, with the end token, of each training example's input and target."""
    check_prepared(seqio.get_mixture_or_task(task), "train")
    features = {"inputs": FIXED, "targets": target_length}
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        features, split="train", shuffle=True, seed=0, num_epochs=1
    )
    for example in dataset.as_numpy_iterator():
        yield len(example["inputs"]), len(example["targets"])


def measure(task: str) -> dict[str, str | float]:
    """A task's shares of real positions, and its costs relative to the fixed length."""
    prompt = _PROMPT_LENGTH.value
    lengths = list(lengths_of(task, _TARGET_LENGTH.value))
    inputs = [source for source, _ in lengths]
    base, buckets = fixed(inputs, prompt), bucketed(inputs, prompt)
    row = max(_PACKED_LENGTH.value, FIXED + prompt)
    rows = packed(lengths, prompt, row, _TARGET_LENGTH.value, _BATCH_SIZE.value)
    return {
        "task": task,
        "real_token_share": base.share,
        "bucketed_real_token_share": buckets.share,
        "packed_real_token_share": rows.share,
        "bucketed_cost": buckets.computed / base.computed,
        "packed_cost": rows.computed / base.computed,
    }


def main() -> None:
    bad_rows = BadRows(SKIP_BAD_ROWS.value or 0)
    registered = all_tasks.register(
        tasks.vocabulary(_VOCABULARY.value), _DATA_DIR.value or TFDS, bad_rows
    )
    names = [all_tasks.full_name(name, registered) for name in _TASK.value or ()]
    found = [measure(name) for name in names]
    means = {
        name: math.exp(statistics.fmean(math.log(float(row[name])) for row in found))
        for name in ("bucketed_cost", "packed_cost")
    }
    table = {
        str(row["task"]): {k: float(v) for k, v in row.items() if k != "task"} for row in found
    }
    print(the_table.table(table | {"geometric mean": means}))
    if skipped := bad_rows.summary():
        print(skipped)
    if _JSON.value:
        files.write_json(_JSON.value, {"tasks": found, "geometric_mean": means})


if __name__ == "__main__":
    flags.mark_flag_as_required("task")
    plain_command.run(main)
