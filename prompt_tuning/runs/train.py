"""The main job: trains a method's leaves on a task, measures what they gained, and saves them."""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from etils import epath

from prompt_tuning import families
from prompt_tuning.analysis import learning_curve
from prompt_tuning.checkpoint import backbone as backbones
from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint import fingerprint
from prompt_tuning.checkpoint.card import Card
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import table
from prompt_tuning.evaluation.scores import (
    constant_notes,
    majority,
    measure_each,
    most_frequent_name,
    predict,
)
from prompt_tuning.evaluation.sets import EvalSet, Predictions
from prompt_tuning.evaluation.validation import Validation, check_resumes, one_row
from prompt_tuning.methods.base import Method
from prompt_tuning.model import summary
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runs import checks, loading, result_file, saving
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.runs.result_file import FROZEN, MAJORITY, TRAINED, Result
from prompt_tuning.runtime.lock import only_run
from prompt_tuning.runtime.resumable_lines import digest
from prompt_tuning.sharding import Layout
from prompt_tuning.training.loop import Fit
from prompt_tuning.training.metrics_writer import read_metrics
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import unflatten


def train(
    *,
    model_dir: str,
    config: Config,
    method: Method,
    layout: Layout,
    data: Data,
    initial_checkpoint: str,
    fit: Fit,
    eval_methods: Sequence[str] = ("rank",),
    eval_batch_size: int = 32,
    seed: int = 0,
    on_start: Callable[[epath.Path], str | None] = lambda folder: None,
    measure_again: bool = True,
) -> Result:
    """Trains, validates every `fit.eval_period` steps, and measures the best step at the end.

    The best step has the highest mean over the validation tasks of each one's first metric. Each
    task of a mixture is then measured on its test split, or on its validation split if it has no
    other.

    Writes to `model_dir`: logs and checkpoints (see `Fit`), `prompt_best` and `prompt_last` as
    `.npy` and `.safetensors`, `trained_best.safetensors` and `trained_last.safetensors` (all
    trained leaves, by path), a card of each (`checkpoint.card`), `result.json` and
    `learning_curve.png`.

    Args:
      model_dir: Folder of the run. A run that was interrupted resumes from the checkpoints in it.
        One process at a time can work in it.
      config: Configuration of the backbone.
      method: Tuning method.
      layout: Layout of the arrays on the devices.
      data: Task or mixture.
      initial_checkpoint: Path of the frozen backbone's weights.
      fit: Settings of training.
      eval_methods: Evaluation methods, "rank", "generate" or "auto"; the first one
        chooses the best step.
      eval_batch_size: Number of rows of an evaluation batch.
      seed: Seed of the initialisation.
      on_start: Function called with the folder once all settings are checked and before anything is
        written; may return the settings as text, for the cards.
      measure_again: Whether a finished run is measured again; otherwise its settings and the
        backbone's fingerprint are compared, without building a model, and its results are returned
        if they are of these examples and metrics.

    Returns:
      The content of `result.json`.
    """
    began = time.perf_counter()

    # Check.
    folder = checks.output_folder("MODEL_DIR", model_dir)
    checks.training(fit, data, layout, eval_batch_size=eval_batch_size, seed=seed)
    validation_sets = data.eval_sets("validation")
    test_sets = data.eval_sets("test") if "test" in data.splits else ()
    measured_sets = list({s.task: s for s in (*validation_sets, *test_sets)}.values())
    checks.eval_methods(eval_methods, measured_sets, "EVAL_METHODS")
    # Now, since it raises for metrics that are not numbers.
    majorities = {s.task: majority(s, eval_methods) for s in measured_sets}
    described = _settings(data, validation_sets, seed)
    examples = {s.task: _digest(s) for s in measured_sets}
    if not measure_again:
        previous = _result_of_finished(
            folder,
            fit,
            initial_checkpoint,
            config,
            lambda: {**fit.described(_outline(config, method, data, layout)), **described},
        )
        if previous is not None and previous.measures(majorities, examples):
            print(f"already finished, see {folder / result_file.NAME}", flush=True)
            return previous
        if previous is not None and RunCheckpoints(folder).latest is None:
            raise UserError(
                f"{folder}: its result.json is of other metrics, test examples or tasks, and there "
                "is no checkpoint to measure again; restore the checkpoint, ask for what was "
                "measured, or delete the folder to train again"
            )
    rows_multiple = layout.row_shards * fit.num_microbatches
    batches = functools.partial(
        data.train_batches, positions=method.positions, multiple=rows_multiple
    )
    batches(0)  # raises for targets that are too long

    # Load.
    tuned = loading.load(config, method, data, layout, checkpoint=initial_checkpoint, seed=seed)
    if not tuned.split.trained:
        raise UserError(
            f"METHOD = {method}: has no trainable parameters; evaluate it with "
            "`python -m prompt_tuning.eval`"
        )
    method = cast(Method, tuned.model.sites)  # with its settings for the task

    # Lock.
    with only_run(folder):
        identity = fingerprint.identity(initial_checkpoint, tuned.backbone, tuned.sums)
        start, changes = fit.resumes_from(tuned, folder, identity, described)
        check_resumes(folder, validation_sets, eval_methods, tuned.trained, start)
        finished = _card_of_finished(folder) if start == fit.total_steps else None
        if finished:
            print(f"{folder}: finished, all {start} steps; measuring again", flush=True)
            for line in _other_examples(folder, measured_sets, examples):
                print(line, flush=True)
        settings = finished.config if finished else _with_changes(on_start(folder) or "", changes)
        print(summary.parameters(tuned.split), flush=True)
        _announce(data, validation_sets, measured_sets)

        # Baseline. It comes first because a method may train the backbone's own leaves.
        answers = functools.partial(
            _answers, eval_sets=measured_sets, methods=eval_methods, batch_size=eval_batch_size
        )
        frozen_answers = answers(tuned.without_method())

        # Fit.
        validation = Validation(folder, validation_sets, eval_methods, eval_batch_size, start)
        with validation:
            last = fit(
                tuned,
                model_dir=folder,
                batches=batches,
                evaluators=[validation],
                identity=identity,
                settings=described,
            )
            best_step, best_leaves = validation.best(last.trained)
        best_answers = answers(dataclasses.replace(last, trained=best_leaves))

        # Save.
        describe = functools.partial(
            saving.card_at,
            identity=identity,
            config=config,
            method=method,
            data=data,
            fit=fit,
            settings=settings,
        )
        for which, step, leaves in (
            ("best", best_step, best_leaves),
            ("last", fit.total_steps, last.trained),
        ):
            card = describe(step, validation.metrics_at(step))
            before = cards.read(folder / f"trained_{which}.safetensors") if finished else None
            if before is not None and before.steps == step:  # no step was taken since
                kept = ("optimizer", "learning_rate", "initialisation")
                card = dataclasses.replace(card, **{name: getattr(before, name) for name in kept})
            saving.save_trained(folder, which, method, leaves, card)
        result = Result(
            task=data.task,
            splits={s.task: s.split for s in measured_sets},
            examples=examples,
            scores={
                s.task: {
                    MAJORITY: majorities[s.task],
                    FROZEN: measure_each(s, frozen_answers[s.task]),
                    TRAINED: measure_each(s, best_answers[s.task]),
                }
                for s in measured_sets
            },
            distinct_answers={
                task: len(set(next(iter(by_method.values())).texts))
                for task, by_method in best_answers.items()
            },
            best_step=best_step,
            validation=validation.metrics_at(best_step),
            trained_parameters=tuned.split.count(tuned.split.trained),
            total_parameters=tuned.split.count(frozenset(tuned.split.shapes)),
            resumed_from_step=start,
            seconds=round(time.perf_counter() - began, 1),
        )
        _draw(folder, validation.history, result, most_frequent_name(measured_sets[0]))
        result.write(folder)

    # Show.
    for eval_set in measured_sets:
        print(f"\n{eval_set.task}, {eval_set.split} split, step {best_step} (best on validation):")
        print(_table(result, eval_set, method))
        for line in constant_notes(eval_set.task, best_answers[eval_set.task]):
            print(line)
    print(f"\nThe trained leaves, the learning curve and result.json are in {folder}", flush=True)
    for line in data.remarks():
        print(line, flush=True)
    return result


def _result_of_finished(
    folder: epath.Path,
    fit: Fit,
    initial_checkpoint: str,
    config: Config,
    settings: Callable[[], Mapping[str, Any]],
) -> Result | None:
    """The result of a run that took all steps with these settings; None if `train` must look.

    Args:
      folder, fit, initial_checkpoint, config: As in `train`.
      settings: Makes the settings that must be the same.

    Raises:
      CheckpointError: If the weights at `initial_checkpoint` have changed since; or if the run had
        other settings, and `fit.resume_with_changes` is False.
    """
    if not Result.exists(folder):
        return None
    result, checkpoints = Result.read(folder), RunCheckpoints(folder)
    if checkpoints.latest is None:
        warnings.warn(
            f"{folder}: has a result but no checkpoint; its settings are not compared", stacklevel=2
        )
        return result
    backbone = checkpoints.backbone_path
    if checkpoints.latest != fit.total_steps or backbone != str(initial_checkpoint or ""):
        return None
    if backbone:  # what is at its path may be another one by now
        weights = backbones.fingerprint_of(backbone, config)
        checkpoints.backbone = Identity(backbone, weights, {})
    fit.history(checkpoints, settings())
    return result


def _outline(config: Config, method: Method, data: Data, layout: Layout) -> TunedModel:
    """The model whose settings are compared: shapes in place of leaves."""
    method = method.for_task(data.encode, data.labels, data.tasks)
    split = ParamSplit.of(config, method)
    trained = unflatten({path: split.shapes[path] for path in split.trained})
    return TunedModel(families.model(config, method), split, trained, {}, layout)


def _settings(data: Data, validation_sets: Sequence[EvalSet], seed: int) -> dict[str, Any]:
    """What must be the same when a run resumes, besides the settings of `Fit`."""
    return {
        **data.settings,
        # The best step is chosen by their scores.
        "validation examples": digest(*((s.inputs, s.targets) for s in validation_sets)),
        "RANDOM_SEED (initialisation)": seed,
    }


def _digest(data: EvalSet) -> str:
    return digest(data.split, data.inputs, data.targets)


def _other_examples(
    folder: epath.Path, measured_sets: Sequence[EvalSet], examples: Mapping[str, str]
) -> Iterator[str]:
    """A line for each task that a finished run is measured on by other examples than before."""
    try:
        before = Result.read(folder).examples
    except UserError:  # a damaged file, which is written anew
        return
    for data in measured_sets:
        if before.get(data.task, examples[data.task]) != examples[data.task]:
            yield (
                f"warning: {data.task}, {data.split} split: other examples than before; "
                "result.json will be of these, and config.gin stays as it is"
            )


def _card_of_finished(folder: epath.Path) -> Card | None:
    """The card of a run that has written its results; None for any other run."""
    return cards.read(folder / "trained_last.safetensors") if Result.exists(folder) else None


def _with_changes(settings: str, changes: Sequence[str]) -> str:
    """The configuration of a run, preceded by the changes that were made to it on resuming."""
    return "".join(f"# {change}\n" for change in changes) + settings


def _announce(
    data: Data, validation_sets: Sequence[EvalSet], measured_sets: Sequence[EvalSet]
) -> None:
    """Prints what the run measures, and the notes of all data that it reads."""
    for eval_set in measured_sets:
        examples = len(eval_set.targets)
        print(f"measured on {eval_set.task}, {eval_set.split}: {examples} examples", flush=True)
    eval_sets = {(s.task, s.split): s for s in (*validation_sets, *measured_sets)}
    for line in (*data.train_notes(), *(note for s in eval_sets.values() for note in s.notes)):
        print(line, flush=True)


def _answers(
    tuned: TunedModel, *, eval_sets: Sequence[EvalSet], methods: Sequence[str], batch_size: int
) -> dict[str, dict[str, Predictions]]:
    """Predictions by task and evaluation method."""
    return {s.task: predict(tuned, s, methods, batch_size) for s in eval_sets}


def _table(result: Result, eval_set: EvalSet, method: Method) -> str:
    names = {
        MAJORITY: most_frequent_name(eval_set),
        FROZEN: "frozen backbone, no prompt",
        TRAINED: f"{type(method).__name__}, best step",
    }
    rows = result.scores[eval_set.task]
    return table.table({names[row]: metrics for row, metrics in rows.items()})


def _draw(
    folder: epath.Path,
    history: Sequence[Mapping[str, float]],
    result: Result,
    majority_name: str,
) -> None:
    """Draws losses and validation metrics, with the baselines as horizontal lines."""
    base, frozen = (
        one_row({task: rows[row] for task, rows in result.scores.items()})
        for row in (MAJORITY, FROZEN)
    )
    levels = {majority_name: next(iter(base.values()))}
    levels |= {f"frozen backbone, {name}": value for name, value in frozen.items()}
    losses = read_metrics(folder / "train" / "metrics.jsonl")
    learning_curve.learning_curve(folder / "learning_curve.png", losses, history, levels)
