"""T5X's loss: cross entropy with z-loss, label smoothing and T5X's five normalisations."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

from prompt_tuning.transformer.layers import ArrayLike, most_likely

NORMALIZERS = ("NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE")


@dataclasses.dataclass(frozen=True)
class Loss:
    """Settings of the loss. Calling an instance computes the loss of a batch.

    Attributes:
      z_loss: Coefficient of logsumexp(logits)^2.
      label_smoothing: Probability taken from the target and spread over the other V-1 tokens. The
        entropy of that distribution is subtracted, so that the lowest loss is 0.
      normalizing_factor: None for a sum over tokens, as in the original code; or a number to divide
        by, or one of `NORMALIZERS`. "AVERAGE_PER_SEQUENCE" is the mean over examples, those that
        share a packed row included, of each one's mean over its targets.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    normalizing_factor: float | str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"LABEL_SMOOTHING = {self.label_smoothing}: must be in [0, 1)")
        if not 0.0 <= self.z_loss < math.inf:
            raise ValueError(f"Z_LOSS = {self.z_loss}: must be a finite number of at least 0")
        factor = self.normalizing_factor
        if isinstance(factor, str) and factor not in NORMALIZERS:
            raise ValueError(
                f"LOSS_NORMALIZING_FACTOR = {factor!r}: must be None, a number, or one of "
                f"{', '.join(NORMALIZERS)}"
            )
        if isinstance(factor, (int, float)) and not 0 < factor < math.inf:
            raise ValueError(f"LOSS_NORMALIZING_FACTOR = {factor}: must be a number above 0")

    def __call__(
        self,
        logits: Float[Array, "batch length vocab"],
        targets: Int[ArrayLike, "batch length"],
        weights: Shaped[ArrayLike, "batch length"] | None,
        scale: Float[ArrayLike, "batch length"] | None = None,
        segments: Int[ArrayLike, "batch length"] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Computes the loss of a batch.

        Args:
          logits: [B, L, V] float32.
          targets: [B, L] int32.
          weights: [B, L], 1 where a target counts. None does what T5X does with a batch without
            weights: every position counts for a sum or a number, real targets for a named
            normaliser.
          scale: [B, L] float32, this microbatch's rows of the `scale` of the whole batch; None if
            the batch is whole.
          segments: [B, L] int32, the number of each position's example in a packed row, from 1, or
            0 for padding; None if every row is one example.

        Returns:
          The scalar loss, and sums over the batch: `cross_ent_loss` and `z_loss` (the parts of the
          loss), `token_loss` (the loss before normalisation), `accuracy` (number of correct
          targets), `weight_sum`.
        """
        if scale is None:
            scale = self.scale(targets, weights, segments)
        weights = self._weights(targets, weights)
        cross_entropy, z_term = self.per_token(logits, targets)
        total = jnp.sum((cross_entropy + z_term) * weights * scale)
        correct = jnp.where(most_likely(logits) == targets, weights, 0.0)
        return total, {
            "cross_ent_loss": jnp.sum(cross_entropy * weights * scale),
            "z_loss": jnp.sum(z_term * weights * scale),
            "token_loss": jnp.sum((cross_entropy + z_term) * weights),
            "accuracy": jnp.sum(correct),
            "weight_sum": jnp.sum(weights),
        }

    def per_token(
        self, logits: Float[Array, "batch length vocab"], targets: Int[ArrayLike, "batch length"]
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Returns the unweighted cross entropy and z-loss of each position, [B, L] each."""
        log_z = jax.nn.logsumexp(logits, axis=-1)
        target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        cross_entropy = log_z - target_logit
        if self.label_smoothing:
            vocab, e = logits.shape[-1], self.label_smoothing
            low = e / (vocab - 1)
            others = vocab * log_z - jnp.sum(logits, axis=-1) - cross_entropy
            entropy = -((1 - e) * np.log(1 - e) + (vocab - 1) * low * np.log(low + 1e-20))
            cross_entropy = (1 - e) * cross_entropy + low * others - entropy
        return cross_entropy, self.z_loss * jnp.square(log_z)

    def scale(
        self,
        targets: Int[ArrayLike, "batch length"],
        weights: Shaped[ArrayLike, "batch length"] | None,
        segments: Int[ArrayLike, "batch length"] | None = None,
    ) -> Float[Array, "batch length"]:
        """Returns the factor of each position's loss, [B, L] float32; it depends on all rows."""
        weights = self._weights(targets, weights)
        return jnp.broadcast_to(jnp.float32(self._factor(weights, segments)), weights.shape)

    def _weights(self, targets: ArrayLike, weights: ArrayLike | None) -> Array:
        if weights is None:
            named = isinstance(self.normalizing_factor, str)
            weights = targets > 0 if named else jnp.ones_like(targets)
        return jnp.asarray(weights, jnp.float32)

    def _factor(self, weights: Array, segments: ArrayLike | None) -> Array | float:
        match self.normalizing_factor:
            case None:
                return 1.0
            case "NUM_REAL_TARGET_TOKENS":
                return 1.0 / jnp.sum(weights)
            case "NUM_TOTAL_TARGET_TOKENS":
                return 1.0 / weights.size
            case "AVERAGE_PER_SEQUENCE":
                if segments is None:
                    segments = jnp.ones(weights.shape, jnp.int32)
                # An example has at least one position, so there are at most as many examples.
                add_up = functools.partial(jax.ops.segment_sum, num_segments=weights.shape[1] + 1)
                real = jax.vmap(add_up)(weights, segments)
                sequences = jnp.sum(real > 0, dtype=real.dtype)
                own = jnp.take_along_axis(real, segments, axis=1)
                return 1.0 / (jnp.where(own > 0, own, 1.0) * sequences)
            case number:
                return 1.0 / float(number)
