"""T5X's learning-rate schedules: products of factors that depend on the step."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

FACTORS = (
    "constant",
    "linear_warmup",
    "linear_decay",
    "rsqrt_decay",
    "rsqrt_normalized_decay",
    "decay_every",
    "cosine_decay",
)
_NEEDS_WARMUP = FACTORS[1:5]
_NEEDS_STEPS = {"decay_every": "steps_per_decay", "cosine_decay": "steps_per_cycle"}


def schedule(
    factors: str = "constant",
    base_learning_rate: float = 0.3,
    warmup_steps: int = 1_000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20_000,
    steps_per_cycle: int = 100_000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Callable[[ArrayLike], Array]:
    """Returns a product of factors, such as "constant * linear_warmup * rsqrt_decay".

    With s the step, b `base_learning_rate` and w `warmup_steps`, the factors are

      constant                b
      linear_warmup           min(1, s / w)
      linear_decay            b * min(s / w, 1 - decay_factor * (s - w)); it includes b and the
                              warmup, so T5X asks not to combine it with those two
      rsqrt_decay             1 / sqrt(max(s, w))
      rsqrt_normalized_decay  sqrt(w / max(s, w))
      decay_every             decay_factor ^ floor(s / steps_per_decay)
      cosine_decay            (1 + cos(pi * (p mod 1))) / 2, p = max(0, s - w) / steps_per_cycle

    Args:
      factors: Names from `FACTORS`, joined by `*`.
      base_learning_rate: The value b.
      warmup_steps: The value w; at least 1 if a factor other than cosine_decay uses it.
      decay_factor: Factor of decay_every, or slope of linear_decay.
      steps_per_decay: Number of steps between two decays of decay_every, at least 1.
      steps_per_cycle: Number of steps of a cycle of cosine_decay, at least 1.
      step_offset: Number subtracted from the step; the difference is at least 0.
      min_learning_rate: Lower bound of the product.

    Returns:
      A function from the step (an integer, or an array under jit) to a float32 scalar.
    """
    if not 0 < base_learning_rate < math.inf:
        raise ValueError(f"LEARNING_RATE = {base_learning_rate}: must be a number above 0")
    steps = {"steps_per_decay": steps_per_decay, "steps_per_cycle": steps_per_cycle}
    names = [name.strip() for name in factors.split("*")]
    for name in names:
        if name not in FACTORS:
            raise ValueError(
                f"unknown learning rate factor {name!r} in {factors!r}; available: "
                f"{', '.join(FACTORS)}"
            )
        if name in _NEEDS_WARMUP and warmup_steps < 1:
            raise ValueError(
                f"warmup_steps = {warmup_steps}: {name} needs at least 1; for no warmup omit "
                "linear_warmup"
            )
        if name in _NEEDS_STEPS and not 1 <= steps[setting := _NEEDS_STEPS[name]] < math.inf:
            raise ValueError(f"{setting} = {steps[setting]}: {name} needs at least 1")

    def factor(name: str, step: Array) -> ArrayLike:
        match name:
            case "constant":
                return base_learning_rate
            case "linear_warmup":
                return jnp.minimum(1.0, step / warmup_steps)
            case "linear_decay":
                falling = 1.0 - decay_factor * (step - warmup_steps)
                return base_learning_rate * jnp.minimum(step / warmup_steps, falling)
            case "rsqrt_decay":
                return 1.0 / jnp.sqrt(jnp.maximum(step, warmup_steps))
            case "rsqrt_normalized_decay":
                return jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))
            case "decay_every":
                return decay_factor ** (step // steps_per_decay)
            case _:  # cosine_decay
                cycles = jnp.maximum(0.0, (step - warmup_steps) / steps_per_cycle)
                return 0.5 * (1.0 + jnp.cos(jnp.pi * (cycles % 1.0)))

    def learning_rate(step: ArrayLike) -> Array:
        since = jnp.maximum(jnp.asarray(step) - step_offset, 0)
        product = jnp.float32(1.0)
        for name in names:
            product *= factor(name, since)
        return jnp.maximum(product, min_learning_rate)

    return learning_rate
