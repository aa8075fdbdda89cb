"""The training loop: from a model, its batches and settings to trained leaves on disk."""

import dataclasses
import functools
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, cast

import jax
import numpy as np
import optax
from etils import epath

from prompt_tuning import sharding
from prompt_tuning.checkpoint import fingerprint, trained_data
from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.errors import (
    CheckpointError,
    UserError,
    real_number,
    true_or_false,
    whole_number,
)
from prompt_tuning.families import check_target_prefix
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runtime.lock import only_run
from prompt_tuning.runtime.preemption import Preempted, Watch
from prompt_tuning.training import run_settings
from prompt_tuning.training.host_batches import (
    Batches,
    HostBatch,
    batches_from,
    check_packing,
    check_start,
    check_tokens,
    examples_in,
    from_example,
)
from prompt_tuning.training.log import TrainLog
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.metrics_writer import MetricsWriter
from prompt_tuning.training.optim import PRETRAINED_STEPS, adafactor, only_trained
from prompt_tuning.training.prefetch import prefetch
from prompt_tuning.training.progress import Progress
from prompt_tuning.training.step import TrainState, make_train_step


class Evaluator(Protocol):
    """Scores a model and keeps the result.

    Called at step 0, every `eval_period` steps and at the end, and again at such a step when a run
    resumes from it.
    """

    def __call__(self, tuned: TunedModel, step: int) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Settings of training. Calling an instance trains a model's trained leaves.

    Attributes:
      total_steps: Number of steps of the run; the backbone's pre-training steps are not counted.
      learning_rate: Constant, or schedule from the step to the rate; the rate is logged.
      optimizer: Function from the learning rate to an optax transformation.
      loss: Settings of the loss.
      num_microbatches: Number of parts in which each batch is computed; see `make_train_step`.
      eval_period: Number of steps between evaluations.
      checkpoint_period: Number of steps between checkpoints.
      log_period: Number of steps between log lines.
      keep: Number of newest checkpoints to keep.
      seed: Seed of the dropout masks.
      resume_with_changes: Whether a run may resume with other settings than those it was trained
        with so far.

    Raises:
      UserError: If a number is out of its range, or `total_steps` seems to include pre-training.
    """

    total_steps: int
    learning_rate: optax.ScalarOrSchedule = 0.3
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] = adafactor
    loss: Loss = Loss()
    num_microbatches: int = 1
    eval_period: int = 1_000
    checkpoint_period: int = 1_000
    log_period: int = 50
    keep: int = 1
    seed: int = 0
    resume_with_changes: bool = False

    def __post_init__(self) -> None:
        whole_number("RANDOM_SEED", self.seed, 0)
        true_or_false("RESUME_WITH_CHANGES", self.resume_with_changes)
        for macro, number in (
            ("NUM_MICROBATCHES", self.num_microbatches),
            ("CHECKPOINT_KEEP", self.keep),
            ("TRAIN_STEPS", self.total_steps),
            ("EVAL_PERIOD", self.eval_period),
            ("CHECKPOINT_PERIOD", self.checkpoint_period),
            ("LOG_PERIOD", self.log_period),
        ):
            whole_number(macro, number, 1)
        if not callable(self.learning_rate):
            item = getattr(self.learning_rate, "item", lambda: self.learning_rate)  # of an array
            if real_number("LEARNING_RATE", item()) <= 0:
                raise UserError(f"LEARNING_RATE = {self.learning_rate}: must be above 0")
        if not callable(self.optimizer):
            raise UserError(
                f"OPTIMIZER = {type(self.optimizer).__name__}(...): must be a function from the "
                "learning rate to an optimizer, such as optax.sgd; the rate is LEARNING_RATE"
            )
        if self.total_steps >= PRETRAINED_STEPS:
            raise UserError(
                f"TRAIN_STEPS = {self.total_steps}: must be below {PRETRAINED_STEPS}; it counts "
                "the steps of this run alone, where T5X's TRAIN_STEPS includes the backbone's "
                f"{PRETRAINED_STEPS} steps of pre-training: subtract those"
            )

    def __call__(
        self,
        tuned: TunedModel,
        *,
        model_dir: epath.PathLike,
        batches: Batches,
        evaluators: Sequence[Evaluator] = (),
        identity: Identity | None = None,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> TunedModel:
        """Trains `tuned`, resuming from the newest complete checkpoint in `model_dir`.

        An interrupted and resumed run gives bit-identical leaves, logs and validation scores on the
        same number of devices.

        Args:
          tuned: Model from `initialize`. The `dropout_rate` of its configuration applies while
            training; its trained leaves are donated to the first step.
          model_dir: Folder of the run's checkpoints and logs.
          batches: Function from a step to an iterator over the batches from that step on.
          evaluators: Evaluators to call before the first step, every `eval_period` steps, and after
            the last step.
          identity: Identity of the backbone; computed from its leaves if None.
          settings: Further settings by name, JSON values that must be the same when the run
            resumes. Those of the data are known if `batches` is a method of it, such as
            `TaskData.train_batches`.

        Returns:
          The model with its trained leaves, which knows what it was trained with, so that it does
          not answer on data that disagree: all of it if `batches` is such a method, else whether
          targets begin with a sentinel.

        Raises:
          UserError: If another run uses `model_dir`, the batches end, or a batch lacks an array or
            has a token that the embedding has no row for.
          CheckpointError: If the run cannot resume from the checkpoint in `model_dir`.
          FloatingPointError: If the loss is not finite.
          Preempted: On SIGTERM, once the current step is finished and saved.
        """
        if not model_dir:
            raise UserError("model_dir is empty: name a folder")
        if not (isinstance(evaluators, Sequence) and all(map(callable, evaluators))):
            raise UserError(f"evaluators = {evaluators!r}: must be a list of functions")
        try:
            json.dumps(dict(settings))
        except TypeError as error:
            raise UserError(f"settings: must be JSON values ({error})") from None
        folder = epath.Path(model_dir)
        with only_run(folder):
            identity = identity or fingerprint.identity(tuned.source, tuned.backbone, tuned.sums)
            return _Loop(self, tuned, folder, batches, evaluators, identity, settings).run()

    def transformation(self, split: ParamSplit) -> optax.GradientTransformation:
        """The optimizer of the trained leaves.

        Raises:
          UserError: If `learning_rate` or `optimizer` is a function of another kind.
        """
        if callable(self.learning_rate):
            rate = self.learning_rate(0)
            is_number = isinstance(rate, int | float | np.generic | np.ndarray | jax.Array)
            if not is_number or np.ndim(rate):
                raise UserError(
                    f"LEARNING_RATE: the function returned a {type(rate).__name__}; must return a "
                    "number"
                )
        optimizer = self.optimizer(self.learning_rate)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise UserError(
                f"OPTIMIZER: the function returned {optimizer!r}; must return an optimizer of optax"
            )
        return only_trained(optimizer, split)

    def resumes_from(
        self,
        tuned: TunedModel,
        model_dir: epath.Path,
        identity: Identity,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[int, list[str]]:
        """Returns the step that a run in `model_dir` resumes from, 0 if it starts afresh, and its
        changes of settings, those at this step included.

        Raises:
          CheckpointError: If the checkpoint does not fit these settings.
        """
        checkpoints = RunCheckpoints(model_dir, backbone=identity)
        if checkpoints.latest is None:
            return 0, []
        optimizer = self.transformation(tuned.split)
        history = self.history(checkpoints, {**self.described(tuned), **settings})
        step = checkpoints.check(
            jax.eval_shape(lambda trained: TrainState.create(trained, optimizer), tuned.trained)
        )
        return step, history

    def described(self, tuned: TunedModel) -> dict[str, Any]:
        """The settings that must be the same when a run resumes, by name."""
        return run_settings.of_training(
            tuned, self.learning_rate, self.optimizer, self.loss, self.seed, self.total_steps
        )

    def history(self, checkpoints: RunCheckpoints, settings: Mapping[str, Any]) -> list[str]:
        """The changes of settings in a run, one line for each step at which it resumed with some.

        Raises:
          UserError: If the run has taken more steps than `total_steps`.
          CheckpointError: If the newest checkpoint has another backbone, or has other settings and
            `resume_with_changes` is False.
        """
        checkpoints.check_backbone()  # which initial values may follow
        if (checkpoints.latest or 0) > self.total_steps:
            raise UserError(
                f"TRAIN_STEPS = {self.total_steps}: {checkpoints.directory} is already at step "
                f"{checkpoints.latest}"
            )
        about = checkpoints.about
        changes = "; ".join(run_settings.changes(about.get("settings", {}), settings))
        if not changes:
            return about.get("changes", [])
        if not self.resume_with_changes:
            raise CheckpointError(
                f"{checkpoints.directory}: this run was trained with {changes}; resume with the "
                "original settings, set RESUME_WITH_CHANGES = True, or set another MODEL_DIR"
            )
        return [*about.get("changes", []), f"from step {checkpoints.latest}: {changes}"]


def fit(
    tuned: TunedModel,
    *,
    model_dir: epath.PathLike,
    batches: Batches,
    evaluators: Sequence[Evaluator] = (),
    identity: Identity | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **fields: Any,
) -> TunedModel:
    """Trains a model: `Fit(**fields)(tuned, ...)` in one call.

    Args:
      tuned, model_dir, batches, evaluators, identity, settings: See `Fit.__call__`.
      **fields: Fields of `Fit`; `total_steps` is required.

    Returns:
      The model with its trained leaves.
    """
    train = Fit(**fields)
    return train(
        tuned,
        model_dir=model_dir,
        batches=batches,
        evaluators=evaluators,
        identity=identity,
        settings=settings,
    )


def create_state(tuned: TunedModel, optimizer: optax.GradientTransformation) -> TrainState:
    """Creates the state before the first step; optimizer slots are laid out as their leaves are."""
    slots = sharding.like_trained(
        jax.eval_shape(optimizer.init, tuned.trained), tuned.trained, tuned.layout
    )
    opt_state = jax.jit(optimizer.init, out_shardings=slots)(tuned.trained)
    step = sharding.place(np.zeros((), np.int32), tuned.layout.everywhere)
    return TrainState(step, tuned.trained, opt_state)


def _data_of(batches: Batches) -> Any:
    """The data whose method `train_batches` gives the batches; None for others."""
    while isinstance(batches, functools.partial):
        batches = batches.func
    if getattr(batches, "__name__", "") != "train_batches":
        return None
    return getattr(batches, "__self__", None)


def _trained_with(data: Any, tuned: TunedModel) -> TrainedWith | None:
    """What a card would say of a training on these data, as `runs.data_protocol.Data` has it."""
    if not hasattr(data, "target_prefix"):
        return None
    settings = cast(Method, tuned.model.sites).settings
    found = trained_data.of_training(data, settings, tuned.model.config.of_model)
    # The labels of a mixture do not say the order of each task's.
    return found if len(data.tasks) == 1 else dataclasses.replace(found, labels=())


class _Loop:
    """One run of `Fit`: its state, and what happens before, in and after each step."""

    def __init__(
        self,
        settings: Fit,
        tuned: TunedModel,
        model_dir: epath.Path,
        batches: Batches,
        evaluators: Sequence[Evaluator],
        identity: Identity,
        further: Mapping[str, Any],
    ) -> None:
        tuned.check_not_donated()
        self._settings, self._initial, self._evaluators = settings, tuned, evaluators
        optimizer = settings.transformation(tuned.split)
        self._state = create_state(tuned, optimizer)
        self._checkpoints = RunCheckpoints(model_dir, settings.keep, identity)
        self._start = self._checkpoints.latest or 0
        about = self._checkpoints.about
        self._examples, self._rows = about.get("examples", 0), {*about.get("rows", ())}
        data, batches = _data_of(batches), functools.partial(batches_from, batches)
        self._trained_with, self._first_tokens = _trained_with(data, tuned), frozenset[int]()
        check_target_prefix(tuned.model.config, getattr(data, "target_prefix", ""))
        further = {**getattr(data, "settings", {}), **further}
        self._described = {**settings.described(tuned), **further}
        # A model that the folder's run returned continues it.
        leaves, initial = about.get("leaves"), self._described.get(run_settings.INITIAL, [])
        if leaves and run_settings.are_alike(leaves, initial):
            self._described[run_settings.INITIAL] = about["settings"][run_settings.INITIAL]
        host_batches = self._batches_to_come(batches, further)
        if self._checkpoints.latest is not None:
            _, self._state = self._checkpoints.restore(self._state)
        self._watch = Watch(self._start)
        self._progress = Progress(self._start, settings.total_steps)
        self._writer = MetricsWriter(model_dir / "train", self._start)
        self._log = TrainLog(self._writer, settings.learning_rate, self._checkpoints.log)
        self._step = self._compiled(optimizer)
        self._dropout_key = (
            jax.random.key(settings.seed) if tuned.model.config.dropout_rate else None
        )
        vocab_size = tuned.model.config.vocab_size
        places = cast(Method, tuned.model.sites).positions
        # Batches are placed ahead of the step; the log counts the tokens of the host's copies.
        self._batches = prefetch(
            (batch, sharding.put_batch(batch, tuned.layout))
            for batch in (
                check_tokens(check_packing(each, places), vocab_size) for each in host_batches
            )
        )

    def _batches_to_come(self, batches: Batches, of_data: Mapping[str, Any]) -> Iterator[HostBatch]:
        """Compares the settings with those of the checkpoint; returns the batches that follow it.

        Raises:
          CheckpointError: As `Fit.history`.
        """
        about, host_batches = self._checkpoints.about, batches(self._start)
        saved, current = about.get("settings", {}), dict(self._described)
        if self._checkpoints.latest is not None and "settings" not in about:
            warnings.warn(
                f"{self._checkpoints.directory}: its checkpoint is of an earlier version, which "
                "does not record the settings of a run: they are not compared",
                stacklevel=2,
            )
        self._warn_of_hidden(saved, current)
        # Where nothing is known of the data, the examples that they begin with are compared.
        is_stream = of_data.get(run_settings.EXAMPLES) == run_settings.STREAM
        is_unknown = not of_data or (is_stream and not self._start)
        if self._start and not of_data:
            check_start(batches)
        if is_unknown or run_settings.FIRST_BATCH in saved:
            first = next(batches(0) if self._start else host_batches, None)
            if first is not None:
                if not self._start:
                    host_batches = itertools.chain([first], host_batches)
                current[run_settings.FIRST_BATCH] = run_settings.checksum(first)
                if is_stream:  # whose order a source may not take from the seed
                    self._warn_of_stream(saved, current)
                self._described[run_settings.FIRST_BATCH] = current[run_settings.FIRST_BATCH]
        # The batch size need not be named; it is then that of the first batch.
        if "BATCH_SIZE" in saved.keys() - current.keys():
            first = next(host_batches, None)
            if first is not None:
                host_batches = itertools.chain([first], host_batches)
                current["BATCH_SIZE"] = len(first["encoder_input_tokens"])
        if self._trained_with is None:
            first = next(host_batches, None)
            if first is not None:
                host_batches = itertools.chain([first], host_batches)
                tokens = np.asarray(first["decoder_target_tokens"])[:, 0]
                self._first_tokens = frozenset(tokens[tokens != 0].tolist())
        self._changes = self._settings.history(self._checkpoints, current)
        # After a change of the data a step is another number of examples, so these are counted.
        names = current.keys() & {*of_data, "BATCH_SIZE", run_settings.FIRST_BATCH}
        if run_settings.changes(saved, {name: current[name] for name in names}):
            return from_example(batches, self._examples)
        return host_batches

    def _warn_of_stream(self, saved: Mapping[str, Any], current: dict[str, Any]) -> None:
        """Warns of a stream that begins with other examples; it is then taken as it is."""
        known = saved.get(run_settings.FIRST_BATCH, current[run_settings.FIRST_BATCH])
        if known != current[run_settings.FIRST_BATCH]:
            current[run_settings.FIRST_BATCH] = known
            warnings.warn(
                f"{self._checkpoints.directory}: the training data begin with other examples than "
                "those that this run was trained on: a file has changed, or the order does not "
                "follow from the seed, so it does not continue where it ended",
                stacklevel=2,
            )

    def _warn_of_hidden(self, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        """Warns of what a resumed run cannot compare since a function hides it."""
        if not saved:
            return
        directory = self._checkpoints.directory
        if run_settings.is_hidden(self._settings.optimizer):
            warnings.warn(
                f"{directory}: OPTIMIZER is a function of your own, of which only updates for "
                "a few gradients are compared; what it does later, as by a schedule, is not",
                stacklevel=2,
            )
        derived = {"BATCH_SIZE", run_settings.FIRST_BATCH, *run_settings.of_values(saved)}
        if hidden := sorted(saved.keys() - current.keys() - derived):
            warnings.warn(
                f"{directory}: was trained with {', '.join(hidden)}, which this run does not name: "
                "they are not compared; give `train_batches` itself, not a function around it, or "
                "settings=data.settings",
                stacklevel=2,
            )

    def run(self) -> TunedModel:
        start, total = self._start, self._settings.total_steps
        try:
            with self._progress, sharding.on(self._initial.layout), self._watch:
                if start:
                    self._progress.note(f"resuming from step {start}")
                if start == total:
                    self._progress.note(f"all {total} steps are taken: nothing is left to train")
                if start % self._settings.eval_period == 0 or start == total:
                    self._evaluate(start, is_saved=True)
                for step in range(start + 1, total + 1):
                    self._take_step(step)
                    self._after_step(step)
        finally:
            self._batches.close()
            self._checkpoints.close()
            self._writer.close()
        return self._model()

    def _compiled(self, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
        tuned, settings = self._initial, self._settings
        compute = make_train_step(
            tuned.model, tuned.split, optimizer, settings.loss, settings.num_microbatches
        )

        def train_step(*arguments: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            self._log.compilations += 1  # runs only while JAX traces
            return compute(*arguments)

        of_state = jax.tree.map(lambda leaf: leaf.sharding, self._state)
        shardings = (of_state, tuned.layout.everywhere)
        return jax.jit(train_step, donate_argnums=0, out_shardings=shardings)

    def _take_step(self, step: int) -> None:
        if (ahead := next(self._batches, None)) is None:
            raise UserError(
                f"TRAIN_STEPS = {self._settings.total_steps}: the batches end after {step - 1} "
                "steps; give an iterator that does not end, or take fewer steps"
            )
        batch, placed = ahead
        frozen = self._initial.frozen
        self._state, metrics = self._step(self._state, frozen, placed, self._dropout_key)
        self._log.add(metrics, batch)
        self._rows.add(len(batch["encoder_input_tokens"]))
        self._examples += examples_in(batch)
        if step == self._start + 1:  # which includes compilation
            jax.block_until_ready(self._state)
            self._log.restart_clock()

    def _after_step(self, step: int) -> None:
        """Logs, saves, stops and evaluates, in this order.

        1. A log line is due every `log_period` steps and with each checkpoint. Logging comes first
           because it raises if the loss is not finite: such a state is never saved.
        2. A checkpoint is due every `checkpoint_period` steps and after the last step. It precedes
           the evaluation, so that a run that is killed while it evaluates resumes here.
        3. A run that is asked to stop saves this step whatever the period, with the sums of the
           steps since the last log line, and evaluates nothing. An evaluation that is due is made
           when the run resumes.
        4. An evaluation is due every `eval_period` steps and after the last step.
        """
        settings = self._settings
        is_last = step == settings.total_steps
        stops = self._watch.stops(step)
        saves = is_last or step % settings.checkpoint_period == 0
        if saves or step % settings.log_period == 0:
            self._progress.update(step, self._log.flush(step))
        if saves or stops:
            self._save(step)
        if stops:
            raise Preempted
        if is_last or step % settings.eval_period == 0:
            self._evaluate(step, is_saved=saves)

    def _save(self, step: int) -> None:
        pending = self._log.pending(step)
        settings = dict(self._described)
        if len(self._rows) == 1:
            settings.setdefault("BATCH_SIZE", *self._rows)
        about = {
            "settings": settings,
            "changes": self._changes,
            "leaves": run_settings.initial_values(self._initial.split, self._state.trained),
            "examples": self._examples,
            "rows": sorted(self._rows),
        }
        self._checkpoints.save(step, self._state, pending, about=about)

    def _evaluate(self, step: int, is_saved: bool) -> None:
        """Calls the evaluators. SIGTERM interrupts them, and the step is saved if it is not yet."""
        began = time.perf_counter()
        try:
            with self._watch.at_once():
                for evaluator in self._evaluators:
                    evaluator(self._model(), step)
        except Preempted:
            if not is_saved:
                self._save(step)
            raise
        self._log.pause(time.perf_counter() - began)

    def _model(self) -> TunedModel:
        return dataclasses.replace(
            self._initial,
            trained=self._state.trained,
            trained_with=self._trained_with,
            first_tokens=self._first_tokens,
        )
