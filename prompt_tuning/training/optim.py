"""Optimizers: Adafactor with the paper's settings, and the restriction to trained leaves."""

import optax

from prompt_tuning.model.params import ParamSplit

PRETRAINED_STEPS = 1_100_000  # of the LM-adapted T5 v1.1 checkpoints that the paper tunes


def adafactor(
    learning_rate: optax.ScalarOrSchedule = 0.3,
    *,
    decay_rate: float = 0.8,
    weight_decay_rate: float | None = 1e-5,
    multiply_by_parameter_scale: bool = False,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    factored: bool = False,
    pretrained_steps: int = PRETRAINED_STEPS,
) -> optax.GradientTransformation:
    """Returns Adafactor with the paper's settings; it equals T5X's as the original configures it.

    Args:
      learning_rate: Constant or schedule.
      decay_rate: Exponent d of the second moment's decay, 1 - t^-d.
      weight_decay_rate: Share of each weight that is subtracted at each step, not multiplied by the
        learning rate; None for no decay.
      multiply_by_parameter_scale: Whether updates are scaled by the parameter's RMS.
      clipping_threshold: Largest RMS of an update before the learning rate; None for no clipping.
      momentum: Decay of a first moment; None for no first moment.
      factored: Whether the second moments of matrices with both sides at least 128 are factored.
        The published rules meant prompts to be unfactored, but T5X factors prompts of length 128
        and above.
      pretrained_steps: Step at which the count t of the second moment's decay starts. Published
        runs continue the backbone's count, which brings the RMS of every update to the clipping
        threshold times the learning rate: 0.3 here. 0 starts afresh.
    """
    return optax.adafactor(
        learning_rate,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        clipping_threshold=clipping_threshold,
        decay_rate=decay_rate,
        decay_offset=-pretrained_steps,
        momentum=momentum,
        weight_decay_rate=weight_decay_rate or None,
        factored=factored,
    )


def only_trained(
    optimizer: optax.GradientTransformation, split: ParamSplit
) -> optax.GradientTransformation:
    """Applies `optimizer` to trained leaves; frozen ones get a zero update and have no state."""
    return optax.multi_transform({"train": optimizer, "frozen": optax.set_to_zero()}, split.labels)
