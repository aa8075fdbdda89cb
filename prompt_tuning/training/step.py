"""The train step: it differentiates the trained leaves only; the frozen ones are an argument."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int, Key, Shaped

from prompt_tuning.model.params import ParamSplit
from prompt_tuning.training.loss import Loss
from prompt_tuning.transformer.layers import ArrayLike
from prompt_tuning.transformer.network import EncoderDecoder
from prompt_tuning.transformer.paths import Params, flatten

Batch = Mapping[str, Shaped[ArrayLike, "..."]]
Metrics = dict[str, Float[Array, ""]]
# Features that the model takes besides its three token arrays, if a batch has them.
OPTIONAL_FEATURES = (
    "encoder_segment_ids",
    "decoder_segment_ids",
    "encoder_positions",
    "decoder_positions",
    "tasks",
)


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes; frozen leaves and the random key are not part of it.

    Attributes:
      step: Scalar int32, number of updates made.
      trained: Tree of trained leaves.
      opt_state: Optimizer state of the trained leaves.
    """

    step: Int[Array, ""]
    trained: Params
    opt_state: Any

    @classmethod
    def create(cls, trained: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        return cls(jnp.zeros((), jnp.int32), trained, optimizer.init(trained))


def loss_fn(
    model: EncoderDecoder,
    loss: Loss,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ""] | None,
) -> tuple[Float[Array, ""], Metrics]:
    """Computes the loss of a batch and its metrics; a `dropout_key` switches dropout on."""
    optional: dict[str, Any] = {name: batch.get(name) for name in OPTIONAL_FEATURES}
    logits: Any = model.apply(
        {"params": params},
        encoder_input_tokens=batch["encoder_input_tokens"],
        decoder_input_tokens=batch["decoder_input_tokens"],
        decoder_target_tokens=batch["decoder_target_tokens"],
        **optional,
        enable_dropout=dropout_key is not None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    targets, weights = batch["decoder_target_tokens"], batch.get("decoder_loss_weights")
    segments = batch.get("decoder_segment_ids")
    return loss(logits, targets, weights, batch.get("loss_scale"), segments)


def make_train_step(
    model: EncoderDecoder,
    split: ParamSplit,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    num_microbatches: int = 1,
) -> Callable[[TrainState, Params, Batch, Array | None], tuple[TrainState, Metrics]]:
    """Returns a pure step (state, frozen, batch, key) -> (state, metrics), to be jitted.

    The caller should donate the state. `key` is the run's dropout key, the same at every step: step
    n uses `fold_in(key, n)`; None switches dropout off. Metrics are sums over the batch (see
    `Loss`), the loss, and the norm of the trained leaves' gradient.

    Args:
      model: Backbone with its method.
      split: Division of the leaves into trained and frozen.
      optimizer: Optimizer of the trained leaves.
      loss: Settings of the loss.
      num_microbatches: Number of parts, a divisor of the batch's rows, that are computed one after
        the other and whose gradients are added up. Except for dropout masks, the result is the same
        as that of one part.
    """

    def gradient_of(
        trained: Params, frozen: Params, batch: Batch, dropout_key: Key[Array, ""] | None
    ) -> tuple[Params, Metrics]:
        def objective(trained: Params) -> tuple[Float[Array, ""], Metrics]:
            params = split.merge(trained, frozen)
            value, metrics = loss_fn(model, loss, params, batch, dropout_key)
            value += model.sites.penalty(flatten(params)) / num_microbatches
            return value, metrics | {"loss": value}

        return jax.grad(objective, has_aux=True)(trained)

    def accumulated(
        trained: Params, frozen: Params, batch: Batch, dropout_key: Key[Array, ""] | None
    ) -> tuple[Params, Metrics]:
        scale = loss.scale(
            batch["decoder_target_tokens"],
            batch.get("decoder_loss_weights"),
            batch.get("decoder_segment_ids"),
        )
        # Part i takes rows i, i + num_microbatches, ..., so that every device has a share of it.
        parts = {
            name: jnp.swapaxes(rows.reshape(-1, num_microbatches, *rows.shape[1:]), 0, 1)
            for name, rows in {**batch, "loss_scale": scale}.items()
        }

        def add(total: Any, part: tuple[Array, Batch]) -> tuple[Any, None]:
            index, rows = part
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            return jax.tree.map(jnp.add, total, gradient_of(trained, frozen, rows, key)), None

        first = jax.tree.map(lambda rows: rows[0], parts)
        shapes = jax.eval_shape(gradient_of, trained, frozen, first, dropout_key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, (jnp.arange(num_microbatches), parts))[0]

    def step(
        state: TrainState, frozen: Params, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[TrainState, Metrics]:
        dropout_key = None if key is None else jax.random.fold_in(key, state.step)
        compute = gradient_of if num_microbatches == 1 else accumulated
        gradient, metrics = compute(state.trained, frozen, batch, dropout_key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        metrics |= {"gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, trained, opt_state), metrics

    return step
