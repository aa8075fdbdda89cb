"""python benchmarks/input_pipeline.py: does training wait for its data?

Times steps with real batches, made and placed in `fit`'s thread, and steps with one batch that
is already on the device, in turn; the ratio of the medians must be at most 1.05.
"""

import restart

import dataclasses
import itertools
import statistics
from collections.abc import Sequence

import steps
import task_names
from absl import app, flags

from prompt_tuning import embedded
from prompt_tuning.data.batches import Batching, TaskData
from prompt_tuning.evaluation import table
from prompt_tuning.methods import PromptTuning
from prompt_tuning.runtime import files
from prompt_tuning.training.prefetch import prefetch

_MODELS = flags.DEFINE_list("models", ["demo", "t5_1_1_small"], "Presets.")
_TASK = flags.DEFINE_string("task", "demo_reviews", "A registered task.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of local data sets, for their tasks.")
_VOCABULARY = flags.DEFINE_string("vocabulary", embedded.vocabulary(), "SentencePiece.")
_BATCHING = flags.DEFINE_enum("batching", "padded", ["padded", "packed"], "Of one shape.")
_INPUTS = flags.DEFINE_integer("input_length", 64, "Tokens.")
_TARGETS = flags.DEFINE_integer("target_length", 4, "Tokens.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows.")
_PROMPT_LENGTH = flags.DEFINE_integer("prompt_length", 20, "P.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Times that both are measured.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps that are timed, of each, in a round.")
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.")

TARGET = 1.05
AHEAD = 3  # batches that lie ready while others are measured: not timed


@dataclasses.dataclass(frozen=True)
class Times:
    real: Sequence[float]
    repeated: Sequence[float]

    def summary(self) -> dict[str, float]:
        real, repeated = statistics.median(self.real), statistics.median(self.repeated)
        return {"real_ms": 1e3 * real, "repeated_ms": 1e3 * repeated, "ratio": real / repeated}


def measure(model: str, data: TaskData) -> Times:
    trained = steps.trained(model, PromptTuning(_PROMPT_LENGTH.value))
    host = data.train_batches(0, positions=_PROMPT_LENGTH.value)
    stream = prefetch(trained.place(batch) for batch in host)
    first = next(stream)
    sources = {"real": lambda: next(stream), "repeated": lambda: first}
    times: dict[str, list[float]] = {name: [] for name in sources}
    trained.seconds(sources["repeated"], 2)  # compiles
    for _, (name, source) in itertools.product(range(_ROUNDS.value), sources.items()):
        trained.seconds(source, AHEAD)
        times[name].append(trained.seconds(source, _STEPS.value))
    stream.close()
    return Times(**times)


def main(argv: Sequence[str]) -> None:
    del argv
    machine = steps.load()
    task_names.register(_DATA_DIR.value, _VOCABULARY.value)
    lengths = {"inputs": _INPUTS.value, "targets": _TARGETS.value}
    data = TaskData(_TASK.value, lengths, _BATCH_SIZE.value, batching=Batching(_BATCHING.value))
    found = {model: measure(model, data).summary() for model in _MODELS.value}
    print(table.table(found))
    print(f"ratio: at most {TARGET} is the target")
    if _JSON.value:
        settings = {"task": _TASK.value, "batching": _BATCHING.value, "target": TARGET}
        files.write_json(_JSON.value, machine | settings | {"models": found})


if __name__ == "__main__":
    app.run(main)
