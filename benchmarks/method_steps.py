"""python benchmarks/method_steps.py: a step of each tuning method over a step of model tuning.

One batch of random tokens; the methods are timed in turn, `--rounds` times.
"""

import restart

import itertools
import statistics
from collections.abc import Sequence

import steps
from absl import app, flags

from prompt_tuning import methods
from prompt_tuning.evaluation import table
from prompt_tuning.methods import Method
from prompt_tuning.runtime import files
from prompt_tuning.t5.config import preset

_MODEL = flags.DEFINE_string("model", "demo", "Preset.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows.")
_INPUTS = flags.DEFINE_integer("input_length", 48, "Tokens.")
_TARGETS = flags.DEFINE_integer("target_length", 8, "Tokens.")
_LENGTH = flags.DEFINE_integer("prompt_length", 20, "P.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Times that each is measured.")
_STEPS = flags.DEFINE_integer("steps", 3, "Steps of each in a round.")
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.")

BASE = "model_tuning"


def compared(length: int) -> dict[str, Method]:
    """The methods as their gin files have them, with prompts of `length`."""
    start = methods.Uniform()  # without a vocabulary there are no label words to start from
    return {
        "prompt_tuning": methods.PromptTuning(length, initializer=start),
        "p_tuning": methods.PTuning(length, initializer=start),
        "prefix_tuning": methods.PrefixTuning(length),
        "deep_prompt": methods.DeepPrompt(length, initializer=start),
        "warp": methods.Warp(length, initializer=start, label_ids=(3, 4)),
        "lora": methods.LoRA(),
        "adapter": methods.Adapter(),
        "ia3": methods.IA3(),
        "bitfit": methods.BitFit(),
        "multitask_prompt": methods.MultitaskPrompt(length, initializer=start),
        BASE: methods.ModelTuning(),
    }


def main(argv: Sequence[str]) -> None:
    del argv
    about = steps.load()
    models = {
        name: steps.trained(_MODEL.value, method)
        for name, method in compared(_LENGTH.value).items()
    }
    sizes = _BATCH_SIZE.value, _INPUTS.value, _TARGETS.value
    batch = steps.random_batch(preset(_MODEL.value), *sizes)
    placed = next(iter(models.values())).place(batch)
    for model in models.values():
        model.seconds(lambda: placed, 2)  # compiles
    times: dict[str, list[float]] = {name: [] for name in models}
    for _, (name, model) in itertools.product(range(_ROUNDS.value), models.items()):
        times[name].append(model.seconds(lambda: placed, _STEPS.value))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = {
        name: {"step_ms": 1e3 * value, "over_model_tuning": value / medians[BASE]}
        for name, value in medians.items()
    }
    print(table.table(rows))
    if _JSON.value:
        files.write_json(_JSON.value, {**about, "methods": rows})


if __name__ == "__main__":
    app.run(main)
