"""The trainer: from a backbone, a method and batches to trained leaves on disk."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from etils import epath

from prompt_tuning import sharding
from prompt_tuning.checkpoint import fingerprint
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.runtime.preemption import Preempted, Watch
from prompt_tuning.training.log import TrainLog
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.metrics_writer import MetricsWriter
from prompt_tuning.training.optim import adafactor, only_trained
from prompt_tuning.training.prefetch import prefetch
from prompt_tuning.training.progress import Progress
from prompt_tuning.training.step import TrainState, make_train_step

HostBatch = Mapping[str, np.ndarray]


class Evaluator(Protocol):
    """Scores a model and keeps the result; called at step 0, each `eval_period`, at the end, and
    again at such a step when the run goes on from it.
    """

    def __call__(self, tuned: "TunedModel", step: int) -> None: ...


def fit(
    tuned: TunedModel,
    *,
    model_dir: epath.PathLike,
    batches: Callable[[int], Iterator[HostBatch]],
    total_steps: int,
    learning_rate: optax.ScalarOrSchedule = 0.3,
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] = adafactor,
    loss: Loss = Loss(),
    num_microbatches: int = 1,
    evaluators: Sequence[Evaluator] = (),
    eval_period: int = 1_000,
    checkpoint_period: int = 1_000,
    keep: int = 1,
    log_period: int = 50,
    seed: int = 0,
    identity: Identity | None = None,
) -> TunedModel:
    """Trains a model's trained leaves; goes on from the newest whole checkpoint in `model_dir`.

    The model, logs and validation of a run that was stopped anywhere and goes on are, bit for bit,
    those of one that was not, on as many devices.

    Args:
      tuned: from `initialize`; its configuration's `dropout_rate` is used while training, and its
        trained leaves are donated to the first step.
      model_dir: where checkpoints and logs are written.
      batches: from a step to the batches from that step on.
      total_steps: steps of this run (a backbone's pre-training steps are not counted).
      learning_rate: constant or schedule; the real one is logged.
      optimizer: learning rate to optax transformation.
      loss: its settings.
      num_microbatches: parts of a batch that go one after the other; see `make_train_step`.
      evaluators: run before the first step, each `eval_period` steps, and after the last.
      eval_period, checkpoint_period, log_period: in steps.
      keep: newest checkpoints to keep.
      seed: of dropout.
      identity: of the backbone; None to find it here.

    Returns:
      The model with its trained leaves.

    Raises:
      CheckpointError: if the run cannot go on from what lies in `model_dir`.
      Preempted: on SIGTERM, when the step is done and saved.
    """
    transform = only_trained(optimizer(learning_rate), tuned.split)
    state = create_state(tuned, transform)
    identity = identity or fingerprint.identity(tuned.source, tuned.backbone, tuned.sums)
    checkpoints = RunCheckpoints(model_dir, keep, identity)
    if checkpoints.latest is not None:
        _, state = checkpoints.restore(state)
    start = int(state.step)
    compute = make_train_step(tuned.model, tuned.split, transform, loss, num_microbatches)

    def train_step(*arguments: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        log.compilations += 1  # Python comes by when JAX compiles
        return compute(*arguments)

    step = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(
            jax.tree.map(lambda leaf: leaf.sharding, state),
            tuned.layout.everywhere,
        ),
    )
    dropout_key = jax.random.key(seed) if tuned.model.config.dropout_rate else None
    writer = MetricsWriter(epath.Path(model_dir) / "train", start)
    log = TrainLog(writer, learning_rate, checkpoints.log)
    # Batches get to the devices ahead of the step too; the host's stay for the log.
    stream = prefetch((batch, sharding.put_batch(batch, tuned.layout)) for batch in batches(start))

    def evaluate(done: int, saved: bool) -> None:
        began = time.perf_counter()
        at_step = dataclasses.replace(tuned, trained=state.trained)
        try:
            with watch.at_once():
                for evaluator in evaluators:
                    evaluator(at_step, done)
        except Preempted:
            if not saved:
                checkpoints.save(done, state, log.pending(done))
            raise
        log.pause(time.perf_counter() - began)

    try:
        with (
            Progress(start, total_steps) as progress,
            sharding.on(tuned.layout),
            Watch(start) as watch,
        ):
            if start:
                progress.note(f"going on from step {start}")
            if start % eval_period == 0 or start == total_steps:
                evaluate(start, saved=True)
            for done in range(start + 1, total_steps + 1):
                batch, placed = next(stream)
                state, metrics = step(state, tuned.frozen, placed, dropout_key)
                log.add(metrics, batch)
                if done == start + 1:
                    jax.block_until_ready(state)
                    log.restart_clock()  # the first step was compiled
                last, stops = done == total_steps, watch.stops(done)
                saves = last or done % checkpoint_period == 0
                if saves or done % log_period == 0:
                    progress.update(done, log.flush(done))
                if saves or stops:  # a loss that is not finite is never saved
                    checkpoints.save(done, state, log.pending(done))
                if stops:
                    raise Preempted
                if last or done % eval_period == 0:
                    evaluate(done, saves)
    finally:
        stream.close()
        checkpoints.close()
        writer.close()
    return dataclasses.replace(tuned, trained=state.trained)


def create_state(tuned: TunedModel, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state, its optimizer slots laid out as the leaves they belong to."""
    replicated = tuned.layout.everywhere
    slots = sharding.like_trained(
        jax.eval_shape(optimizer.init, tuned.trained), tuned.trained, tuned.layout
    )
    opt_state = jax.jit(optimizer.init, out_shardings=slots)(tuned.trained)
    return TrainState(sharding.place(np.zeros((), np.int32), replicated), tuned.trained, opt_state)
