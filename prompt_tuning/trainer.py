"""The trainer: from a backbone, a method and batches to trained leaves on disk."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from prompt_tuning import scanned, sharding
from prompt_tuning.checkpoint import backbone, fingerprint
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.loss import Loss
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.metrics_writer import MetricsWriter
from prompt_tuning.optim import adafactor, only_trained
from prompt_tuning.params import Params, ParamSplit, flatten, unflatten
from prompt_tuning.preemption import Preempted, Watch
from prompt_tuning.prefetch import prefetch
from prompt_tuning.progress import Progress
from prompt_tuning.sharding import Layout
from prompt_tuning.t5 import int8
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import EMBEDDING, T5, init_shapes
from prompt_tuning.train_log import TrainLog
from prompt_tuning.train_step import TrainState, make_train_step

HostBatch = Mapping[str, np.ndarray]


class Evaluator(Protocol):
    """Scores a model and keeps the result; called at step 0, each `eval_period`, at the end, and
    again at such a step when the run goes on from it.
    """

    def __call__(self, tuned: "TunedModel", step: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class TunedModel:
    """A model with its parameters, ready to predict.

    Attributes:
      model: the backbone with the method at its sites.
      split: which leaves are trained.
      trained, frozen: the two halves of the parameters.
      layout: how they lie on devices.
      source: path of the backbone's weights; "" for random ones.
      sums: for the fingerprint, of leaves that became int8 when they were read.
    """

    model: T5
    split: ParamSplit
    trained: Params
    frozen: Params
    layout: Layout
    source: str = ""
    sums: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def params(self) -> dict:
        return self.split.merge(self.trained, self.frozen)

    @property
    def backbone(self) -> Params:
        """The backbone's leaves, by path, as they are now."""
        leaves = flatten(self.params).items()
        return {path: leaf for path, leaf in leaves if path in self.split.backbone}


def initialize(
    config: T5Config,
    method: Method,
    *,
    layout: Layout,
    seed: int = 0,
    checkpoint: epath.PathLike | None = None,
    encode: Callable[[str], list[int]] | None = None,
    labels: Sequence[str] = (),
) -> TunedModel:
    """Builds a model: backbone leaves from `checkpoint` (or at random, if None), added leaves by
    the method; every leaf is made or read straight onto its shards.

    Args:
      config: the backbone's shape.
      method: the tuning method.
      layout: from `sharding.layout`.
      seed: of all random initialisation.
      checkpoint: backbone weights, see `checkpoint.backbone.load`.
      encode: text to ids, for initialisers that start from words.
      labels: the task's label words, for the same.
    """
    model, split = T5(config, method), ParamSplit.of(config, method)
    boxed = init_shapes(config, method)
    shardings = flatten(sharding.shardings_of(boxed, layout))
    shapes = {
        path: sharding.with_sharding(leaf, shardings[path]) for path, leaf in split.shapes.items()
    }
    loaded: dict[str, Any] = {}
    sums: dict[str, np.ndarray] = {}
    if checkpoint is not None:
        stored = {path: leaf for path, leaf in shapes.items() if path in split.backbone}
        loaded, sums = _read(checkpoint, stored)
    missing = {path: leaf for path, leaf in shapes.items() if path not in loaded}
    leaves = loaded | _random_leaves(model, missing, seed)
    of_backbone = {path: leaves[path] for path in split.backbone}
    identity = functools.partial(fingerprint.of, of_backbone, sums)
    about = Backbone(leaves[EMBEDDING], encode, tuple(labels), identity)
    values = method.initial_values(about, seed)
    for path, value in values.items():
        leaves[path] = sharding.place(np.asarray(value, np.float32), shardings[path])
    trained, frozen = split.split(unflatten(leaves))
    return TunedModel(model, split, trained, frozen, layout, str(checkpoint or ""), sums)


def _read(
    checkpoint: epath.PathLike, wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Leaves of a checkpoint; each that is to be int8 becomes it before the next one is read. Their
    sums, by path in files, are those of the values that were read.
    """
    in_files, sums = scanned.layer_shapes(wanted), {}

    def finish(path: str, leaf: jax.Array) -> Any:
        if not int8.is_int8(in_files[path]):
            return leaf
        sums[path] = fingerprint.sum_of(leaf)
        quantize = jax.jit(int8.quantize, static_argnums=1, out_shardings=_places(in_files[path]))
        return jax.block_until_ready(quantize(leaf, path.rpartition("/")[2]))

    def as_read(leaf: Any) -> jax.ShapeDtypeStruct:
        place = jax.tree.leaves(leaf)[0].sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    read = {path: as_read(leaf) for path, leaf in in_files.items()}
    each = finish if any(map(int8.is_int8, in_files.values())) else None
    return scanned.stack(backbone.load(checkpoint, read, each), wanted), sums


def _places(leaf: Any) -> Any:
    return jax.tree.map(lambda part: part.sharding, leaf)


def _random_leaves(model: T5, wanted: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Leaves at `wanted` from the modules' initialisers; the compiler drops the others."""
    if not wanted:
        return {}
    tokens = jnp.zeros((1, 2), jnp.int32)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        leaves = flatten(nn.unbox(model.init(key, tokens, tokens, tokens)["params"]))
        return {
            path: int8.quantize(leaves[path], path)
            if int8.is_int8(leaf)
            else leaves[path].astype(leaf.dtype)
            for path, leaf in wanted.items()
        }

    return jax.jit(init, out_shardings=_places(wanted))(jax.random.key(seed))


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
