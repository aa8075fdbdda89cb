"""The main job: train a method's leaves on a task, measure what they gained, and save them."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from etils import epath

from prompt_tuning import __version__, sharding
from prompt_tuning.analysis import learning_curve
from prompt_tuning.checkpoint import fingerprint
from prompt_tuning.checkpoint.card import Card
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import table as the_table
from prompt_tuning.evaluation.scores import most_frequent_name, score
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.evaluation.validation import Metrics, Validation, check_goes_on, one_row
from prompt_tuning.methods.base import Method
from prompt_tuning.model import summary
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runs import checks, loading
from prompt_tuning.runs.data_protocol import Data
from prompt_tuning.runs.result_file import _flat, _table
from prompt_tuning.runs.saving import save_trained
from prompt_tuning.runtime import files
from prompt_tuning.runtime.lock import only_run
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import T5
from prompt_tuning.t5.paths import flatten, unflatten
from prompt_tuning.training.log import rate_at
from prompt_tuning.training.loop import fit
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.metrics_writer import read_metrics
from prompt_tuning.training.optim import adafactor, only_trained
from prompt_tuning.training.step import TrainState


def train(
    *,
    model_dir: str,
    config: T5Config,
    method: Method,
    layout: Layout,
    data: Data,
    initial_checkpoint: str,
    total_steps: int,
    learning_rate: optax.ScalarOrSchedule = 0.3,
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] = adafactor,
    loss: Loss = Loss(),
    num_microbatches: int = 1,
    eval_period: int = 1_000,
    checkpoint_period: int = 1_000,
    keep: int = 1,
    log_period: int = 50,
    eval_methods: Sequence[str] = ("rank",),
    eval_batch_size: int = 32,
    seed: int = 0,
    on_start: Callable[[epath.Path], str | None] = lambda folder: None,
    dry_run: bool = False,
) -> Mapping[str, Any]:
    """Trains, validates each `eval_period` steps, and measures the best step at the end.

    A mixture is validated and measured on each of its tasks that has the split and metrics; the
    mean over them of each one's first metric chooses the best step.

    Writes below `model_dir`: logs and checkpoints (see `trainer.fit`), `prompt_best` and
    `prompt_last` as `.npy` and `.safetensors`, `trained_best.safetensors` (all trained leaves, by
    path), a card of each (`checkpoint.card`), `result.json` and `learning_curve.png`. The
    validation split chooses the best step; the table of each task is of its test split, or of the
    validation split where it has no other.

    Args:
      model_dir: the run's folder; a run that was stopped goes on from what lies there. One process
        at a time may be at work in it.
      config: the backbone's shape.
      method: what is trained.
      data: the task or mixture.
      initial_checkpoint: the frozen backbone's weights.
      total_steps, learning_rate, optimizer, loss, num_microbatches, eval_period, checkpoint_period,
        keep, log_period: see `trainer.fit`.
      eval_methods: "rank", "generate" or "auto"; the first one chooses the best step.
      eval_batch_size: rows of an evaluation batch.
      layout: how arrays lie on the devices.
      seed: of initialisation and dropout.
      on_start: called with the folder when all settings have proved good, before a write; may
        return the settings as a text, for the cards.
      dry_run: print parameters and shardings, allocate and write nothing.

    Returns:
      The content of `result.json`; its `seconds` are those of this process.
    """
    began = time.perf_counter()
    if dry_run:
        print(summary.plan(config, method, layout))
        return {}
    folder = checks.output_folder("MODEL_DIR", model_dir)
    checks.positive(
        {
            "NUM_MICROBATCHES": num_microbatches,
            "CHECKPOINT_KEEP": keep,
            "TRAIN_STEPS": total_steps,
            "EVAL_PERIOD": eval_period,
            "CHECKPOINT_PERIOD": checkpoint_period,
            "LOG_PERIOD": log_period,
        }
    )
    checks.seed(seed)
    sharding.check_batch_size(data.batch_size, layout, parts=num_microbatches)
    sharding.check_batch_size(eval_batch_size, layout, "EVAL_BATCH_SIZE")
    checks.split("train", data.splits)
    checks.split("validation", data.splits)
    validation_sets = data.eval_sets("validation")
    test_sets = data.eval_sets("test") if "test" in data.splits else ()
    sets = list({one.task: one for one in (*validation_sets, *test_sets)}.values())
    checks.eval_methods(eval_methods, sets, "EVAL_METHODS")
    batches = functools.partial(
        data.train_batches,
        positions=method.positions,
        multiple=layout.row_shards * num_microbatches,
    )
    batches(0)  # raises for targets that are too long
    tuned = loading.load(config, method, data, layout, checkpoint=initial_checkpoint, seed=seed)
    if not tuned.split.trained:
        raise UserError(f"METHOD = {method}: trains no parameter; measure it with `eval`")
    scored = functools.partial(_scores, sets=sets, methods=eval_methods, size=eval_batch_size)
    with only_run(folder):
        identity = fingerprint.identity(initial_checkpoint, tuned.backbone, tuned.sums)
        resumed_from = _step_of(folder, tuned, optimizer(learning_rate), identity)
        check_goes_on(folder, validation_sets, eval_methods, tuned.trained, resumed_from)
        if resumed_from > total_steps:
            raise UserError(
                f"TRAIN_STEPS = {total_steps}: {folder} is at step {resumed_from} already"
            )
        print(summary.parameters(tuned.split), flush=True)
        settings = on_start(folder)
        for one in sets:
            print(f"measured on {one.task}, {one.split}: {len(one.targets)} examples", flush=True)
        # The plain backbone comes first: a method that trains its leaves will have changed them.
        rows = {"majority": scored(None), "frozen": scored(untuned(tuned))}
        validation = Validation(
            folder, validation_sets, eval_methods, eval_batch_size, start=resumed_from
        )
        last = fit(
            tuned,
            model_dir=folder,
            batches=batches,
            total_steps=total_steps,
            learning_rate=learning_rate,
            optimizer=optimizer,
            loss=loss,
            num_microbatches=num_microbatches,
            evaluators=[validation],
            eval_period=eval_period,
            checkpoint_period=checkpoint_period,
            keep=keep,
            log_period=log_period,
            seed=seed,
            identity=identity,
        )
        best_step, best_leaves = validation.best(last.trained)
        rows["prompt"] = scored(dataclasses.replace(last, trained=best_leaves))
        validated = {line.pop("step"): line for line in validation.history}
        tables = {one.task: _table(one, rows, method) for one in sets}
        splits = {one.task: one.split for one in sets}
        of_one = {"task": sets[0].task, "split": sets[0].split, "scores": tables[sets[0].task]}
        of_all = {"task": data.task, "split": splits, "scores": tables}
        result = {
            **(of_one if len(sets) == 1 else of_all),
            "best_step": best_step,
            "validation": validated[best_step],
            **_flat(rows),
            "trained_parameters": tuned.split.count(tuned.split.trained),
            "total_parameters": tuned.split.count(frozenset(tuned.split.shapes)),
            "resumed_from_step": resumed_from,
            "seconds": round(time.perf_counter() - began, 1),
        }
        of_steps = {"best": (best_step, best_leaves), "last": (total_steps, last.trained)}
        card = functools.partial(
            Card,
            backbone=identity.path,
            fingerprint=identity.fingerprint,
            d_model=config.d_model,
            task=data.task,
            method=type(method).__name__,
            length=0,
            placement=method.said("placement"),
            initialisation=method.said("initializer"),
            optimizer=getattr(optimizer, "__name__", repr(optimizer)),
            version=__version__,
            config=settings or "",
        )
        for which, (step, leaves) in of_steps.items():
            rate = rate_at(learning_rate, max(step, 1))
            about = card(learning_rate=rate, steps=step, metric=validated[step])
            save_trained(folder, which, method, leaves, about)
        _draw(folder, validation, rows, most_frequent_name(sets[0]))
        files.write_json(folder / "result.json", result)
    for task, table in tables.items():
        print(f"\n{task}, {splits[task]} split, step {best_step} (best on validation):")
        print(the_table.table(table))
    print(f"\nThe prompt, the learning curve and result.json are in {folder}", flush=True)
    for line in data.remarks():
        print(line, flush=True)
    return result


def untuned(tuned: TunedModel) -> TunedModel:
    """The backbone as it is in `tuned`, without the method."""
    leaves = flatten(tuned.params)
    shapes = {path: tuned.split.shapes[path] for path in tuned.split.backbone}
    frozen = unflatten({path: leaves[path] for path in shapes})
    split = ParamSplit(shapes, frozenset(), frozenset())
    return TunedModel(T5(tuned.model.config), split, {}, frozen, tuned.layout)


def _step_of(
    folder: epath.Path,
    tuned: TunedModel,
    optimizer: optax.GradientTransformation,
    identity: Identity,
) -> int:
    """The step that the run in `folder` is at; 0 if there is none.

    Raises:
      CheckpointError: if it cannot go on with these settings.
    """
    checkpoints = RunCheckpoints(folder, backbone=identity)
    if checkpoints.latest is None:
        return 0
    transform = only_trained(optimizer, tuned.split)
    state = jax.eval_shape(lambda trained: TrainState.create(trained, transform), tuned.trained)
    return checkpoints.check(state)


def _scores(
    tuned: TunedModel | None, *, sets: Sequence[EvalSet], methods: Sequence[str], size: int
) -> dict[str, Metrics]:
    """Metrics by task."""
    return {data.task: score(tuned, data, methods, size) for data in sets}


def _draw(
    folder: epath.Path,
    validation: Validation,
    rows: Mapping[str, Mapping[str, Metrics]],
    base_name: str,
) -> None:
    base, frozen = one_row(rows["majority"]), one_row(rows["frozen"])
    levels = {base_name: next(iter(base.values()))}
    levels |= {f"frozen backbone, {name}": value for name, value in frozen.items()}
    learning_curve.learning_curve(
        folder / "learning_curve.png",
        read_metrics(folder / "train" / "metrics.jsonl"),
        validation.history,
        levels,
    )
