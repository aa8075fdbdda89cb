"""The three embedded tasks in mixed batches, from one backbone.

The prompt of the reviews is the one that `make demo` trains; the other two come with the package.
"""

import itertools
import statistics

import prompt_tuning
from prompt_tuning import embedded
from prompt_tuning.data.files import Row, TextFiles

SHOWN = 2  # rows per task
WIDTH = 60  # characters per text


def demo(*, prompt_file: str) -> None:
    """Prints the table of `mixed` for the reviews' prompt in `prompt_file`."""
    print(mixed(served(prompt_file)))


def served(prompt: str) -> prompt_tuning.Model:
    """Loads the embedded backbone with the three tasks."""
    model = prompt_tuning.load("demo", input_length=64)
    model.add_task("demo_reviews", prompt, ["negative", "positive"])
    model.add_tasks(embedded.prompts())
    return model


def mixed(model: prompt_tuning.Model, most: int | None = None) -> str:
    """Answers `most` test rows of each task (None: all) in one call, and formats a table."""
    rows_by_task = {task: _test_rows(task, model.labels(task))[:most] for task in model.tasks}
    rows = [(task, row) for task, task_rows in rows_by_task.items() for row in task_rows]
    answers = model.classify([row.inputs for _, row in rows], [task for task, _ in rows])
    lines = [f"{'task':15} {'text':{WIDTH}} {'answer':13} {'p':4}  right answer"]
    shares = []
    remaining = iter(answers)
    for task, task_rows in rows_by_task.items():
        answered = list(zip(itertools.islice(remaining, len(task_rows)), task_rows, strict=True))
        for answer, row in answered[:SHOWN]:
            text = row.inputs if len(row.inputs) <= WIDTH else f"{row.inputs[: WIDTH - 3]}..."
            p = answer.probabilities[answer.label]
            lines.append(f"{task:15} {text:{WIDTH}} {answer.label:13} {p:.2f}  {row.targets}")
        right = [answer.label == row.targets for answer, row in answered]
        shares.append(f"{task} {statistics.fmean(right):.2f}")
    return "\n".join([*lines, f"accuracy of {len(rows)} rows, mixed: {', '.join(shares)}"])


def _test_rows(task: str, labels: tuple[str, ...]) -> list[Row]:
    return TextFiles(test=embedded.data(task, "test"), labels=labels).rows("test")
