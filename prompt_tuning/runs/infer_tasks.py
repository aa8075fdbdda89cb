"""Predictions for rows of several tasks, by one backbone in mixed batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning.checkpoint import card
from prompt_tuning.checkpoint.trained_data import check_text_fields
from prompt_tuning.data.files import TEXT_NAME
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.notes import OF_TRAINING, cut_note, unknown_notes
from prompt_tuning.runs import checks
from prompt_tuning.runtime import resumable_lines
from prompt_tuning.serving import model as serving
from prompt_tuning.serving.answers import Classification
from prompt_tuning.serving.task_rows import TaskRow, TaskRows
from prompt_tuning.serving.texts import Encoded, encoded
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config

BATCHES_PER_WRITE = 16


def infer(
    data: TaskRows,
    folder: epath.Path,
    *,
    config: Config,
    layout: Layout,
    initial_checkpoint: str,
    allow_other_backbone: bool,
    mode: str,
    on_start: Callable[[epath.Path], object],
) -> epath.Path:
    """Writes `tasks-MODE.jsonl`, one line per row.

    A line is {"inputs": {"inputs_pretokenized": text, COLUMN: value, ...}, "task": name,
    "prediction": text} with the other columns of the row, and "probabilities" by label for rank
    classification, else with "score".

    Args:
      data: Rows and prompts of the tasks.
      folder: Folder to write to.
      config, initial_checkpoint, layout: See `runs.train.train`.
      allow_other_backbone: Whether a prompt's card may name another backbone.
      mode: "rank", "generate", or "auto", which ranks the labels of tasks that have labels and
        generates text for the others.
      on_start: Function called with the folder before anything is written.

    Returns:
      The path of the written file.

    Raises:
      UserError: If a prompt, a row or the mode is wrong, before anything is written.
    """
    checks.method_names([mode], "MODE")
    model = serving.load(
        config,
        initial_checkpoint,
        data.vocabulary,
        layout=layout,
        batch_size=data.batch_size,
        input_length=data.input_length,
        allow_other_backbone=allow_other_backbone,
        rank_memory_gib=data.rank_memory_gib,
    )
    tasks = model.add_tasks(data.prompts)
    for task, training in model.task_set.trained_with.items():
        check_text_fields({task: data.text_fields}, training.text_fields, f"{data.prompts}/{task}")
    rows = data.rows(tasks)
    if mode == "rank" and (unlabelled := [row.task for row in rows if not model.labels(row.task)]):
        raise UserError(f"MODE = 'rank', but the task {unlabelled[0]} has no labels in labels.json")
    on_start(folder)
    path = folder / f"tasks-{mode}.jsonl"
    inputs = [
        encoded(
            model.vocabulary, row.text, model.task_set.input_length(row.task, model.input_length)
        )
        for row in rows
    ]
    unknown, pieces = sum(x.unknown for x in inputs), sum(len(x.ids) for x in inputs)
    for line in (*_cut_notes(model, rows, inputs), *unknown_notes("rows", unknown, pieces)):
        print(line, flush=True)
    # Outputs may be longer than those of a task's training; they end by themselves.
    longest = {
        task: max(data.target_length, model.task_set.lengths(task).get("targets", 0))
        for task in {row.task for row in rows}
    }
    vectors = {f"{task}/{i}": x for task in tasks for i, x in enumerate(model.prompts(task))}
    key = resumable_lines.digest(
        rows,
        [each.ids for each in inputs],
        (data.batch_size, data.input_length, data.target_length),
        {task: model.labels(task) for task in tasks},
        {task: repr(model.task_set.trained_with[task]) for task in tasks},
        config,
        model.fingerprint,
        getattr(model.vocabulary, "fingerprint", ""),
        card.checksum_of(vectors),  # a fingerprint rounds values
    )

    def lines(start: int, stop: int) -> Iterator[dict[str, Any]]:
        part = rows[start:stop]
        texts, names = [row.text for row in part], [row.task for row in part]
        answers = _answers(model, texts, names, mode, [longest[name] for name in names])
        for row, answer in zip(part, answers, strict=True):
            yield {**example(row.text, row.columns), "task": row.task, **answer}

    resumable_lines.write(path, key, len(rows), BATCHES_PER_WRITE * data.batch_size, lines)
    print(f"{len(rows)} predictions of {len({row.task for row in rows})} tasks in {path}")
    if skipped := data.bad_rows.summary():
        print(skipped)
    return path


def _cut_notes(
    model: serving.Model, rows: Sequence[TaskRow], inputs: Sequence[Encoded]
) -> Iterator[str]:
    """A line for each length to which inputs are cut; a task's card may have one of its own."""
    task_set = model.task_set
    by_length: dict[tuple[str, int], list[bool]] = {}
    for row, each in zip(rows, inputs, strict=True):
        length = task_set.input_length(row.task, model.input_length)
        setting = OF_TRAINING if "inputs" in task_set.lengths(row.task) else "INPUT_LENGTH"
        by_length.setdefault((setting, length), []).append(each.is_cut)
    for (setting, length), cut in by_length.items():
        yield cut_note("rows", setting, {"inputs": (sum(cut), len(cut), length)})


def example(text: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """A text and the other columns of its row, in T5X's form."""
    return {"inputs": {TEXT_NAME: text, **columns}}


def _answers(
    model: serving.Model, texts: list[str], names: list[str], mode: str, longest: Sequence[int]
) -> Iterator[dict[str, Any]]:
    labelled = [mode != "generate" and bool(model.labels(name)) for name in names]
    answer_of_row: dict[int, Any] = {}
    for ranked in (True, False):
        rows = [i for i, has_labels in enumerate(labelled) if has_labels == ranked]
        part = [texts[i] for i in rows], [names[i] for i in rows]
        limits = [longest[i] for i in rows]
        answers = model.classify(*part) if ranked else model.generate(*part, max_tokens=limits)
        answer_of_row |= zip(rows, answers, strict=True)
    for i in range(len(texts)):
        answer = answer_of_row[i]
        if isinstance(answer, Classification):
            yield {"prediction": answer.label, "probabilities": answer.probabilities}
        else:
            yield {"prediction": answer.text, "score": answer.score}
