"""The demo: a prompt for each of the embedded tasks, one table, and all tasks in one batch."""

import statistics
from collections.abc import Callable, Mapping

import prompt_tuning
from prompt_tuning import embedded
from prompt_tuning.analysis import curves, style
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.evaluation.scores import score
from prompt_tuning.methods.base import Method
from prompt_tuning.runs import checks, loading, suite
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.runs.result_file import FROZEN, MAJORITY, TRAINED, Result
from prompt_tuning.runtime import files
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config

METRIC = "rank/accuracy"
BY_HAND = "by_hand"
COLUMNS = {
    MAJORITY: "majority class",
    FROZEN: "frozen backbone",
    BY_HAND: "label words typed in front",
    TRAINED: "prompt",
}
SHOWN = 2  # answers printed per task
TEXT_WIDTH = 60  # characters


def demo(
    *,
    model_dir: str,
    tasks: Mapping[str, Callable[..., Result]],
    by_hand: Mapping[str, Data],
    config: Config,
    method: Method,
    layout: Layout,
    initial_checkpoint: str,
    eval_batch_size: int = 32,
    on_start: suite.OnStart = lambda folder: None,
) -> list[dict]:
    """Trains a prompt per task, compares it with untrained prompts, and answers a mixed batch.

    Writes the folder of each run (see `runs.train.train`) to `MODEL_DIR/NAME`, and
    `learning_curve.png` and `result.json` to `MODEL_DIR`. A run that is finished is not repeated.

    Args:
      model_dir: Folder of the demo.
      tasks: `runs.train.train` with its settings except the folder, by the names of the tasks'
        folders.
      by_hand: The tasks with their label words typed in front of each text, by the same names.
      config: Configuration of the backbone.
      method: Method that adds nothing, for the texts of `by_hand`.
      layout: Layout of the arrays on the devices.
      initial_checkpoint: Path of the backbone's weights.
      eval_batch_size: Number of rows of an evaluation batch.
      on_start: See `runs.train.train`.

    Returns:
      The content of `result.json`: for each task that of its own `result.json`, and `by_hand`, the
      metrics of the frozen backbone on the texts of that name.
    """
    folder = checks.output_folder("MODEL_DIR", model_dir)
    results = suite.results(folder, tasks, on_start)
    contents = []
    for name, result in results.items():
        data = by_hand[name]
        frozen = loading.load(config, method, data, layout, checkpoint=initial_checkpoint, seed=0)
        metrics = score(frozen, data.eval_set(result.splits[data.task]), ["rank"], eval_batch_size)
        contents.append({**result.content, BY_HAND: metrics})
    files.write_json(folder / "result.json", contents)
    metric = f"validation/{METRIC}"
    validation = {name: curves.mean([curves.of_run(folder / name, metric)]) for name in tasks}
    style.save(curves.figure(validation, metric), folder / "learning_curve.png")
    print(f"\n{table(contents)}\n")
    model = prompt_tuning.load("demo", input_length=64)
    for name in tasks:
        model.add_task(name, str(folder / name / "prompt_best.npy"), by_hand[name].labels)
    print(mixed(model))
    print(f"\nPrompts, learning_curve.png and result.json are in {folder}", flush=True)
    return contents


def table(contents: list[dict]) -> str:
    """A table of accuracies with one row per task."""
    lines = ["  ".join(["task".ljust(14), *COLUMNS.values()])]
    for content in contents:
        task = content["task"]
        scores = content["scores"][task] | {BY_HAND: content[BY_HAND]}
        cells = (f"{scores[row][METRIC]:.3f}".rjust(len(name)) for row, name in COLUMNS.items())
        lines.append("  ".join([task.ljust(14), *cells]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def mixed(model: prompt_tuning.Model, most: int | None = None) -> str:
    """Answers test rows of all tasks in one call and returns a table of some of them.

    Args:
      model: The embedded backbone with tasks of the names "reviews", "questions", "topics".
      most: Number of rows per task; None for all of the test split.
    """
    rows_by_task = {task: _test_rows(task, model.labels(task))[:most] for task in model.tasks}
    asked = [(task, row) for task, rows in rows_by_task.items() for row in rows]
    answers = model.classify([row.inputs for _, row in asked], [task for task, _ in asked])
    lines = [f"{'task':10} {'text':{TEXT_WIDTH}} {'answer':13} {'p':4}  right answer"]
    accuracies = []
    for task, rows in rows_by_task.items():
        answered = [answer for answer, (of, _) in zip(answers, asked, strict=True) if of == task]
        for answer, row in list(zip(answered, rows, strict=True))[:SHOWN]:
            text = row.inputs
            text = text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 3]}..."
            p = answer.probabilities[answer.label]
            lines.append(f"{task:10} {text:{TEXT_WIDTH}} {answer.label:13} {p:.2f}  {row.targets}")
        right = [answer.label == row.targets for answer, row in zip(answered, rows, strict=True)]
        accuracies.append(f"{task} {statistics.fmean(right):.2f}")
    return "\n".join([*lines, f"accuracy of {len(asked)} rows, mixed: {', '.join(accuracies)}"])


def _test_rows(task: str, labels: tuple[str, ...]) -> list[Row]:
    return TextFiles(test=embedded.data(task, "test"), labels=labels).rows("test")
