"""Optimizers: the paper's Adafactor as optax has it, and the frozen/trained multi_transform."""

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
    """Adafactor with the paper's settings, equal to T5X's as the original code configures it.

    Args:
      learning_rate: constant or schedule.
      decay_rate: exponent of the second moment's decay, 1 - t^-decay_rate.
      weight_decay_rate: subtracted each step, not multiplied by the learning rate; None for none.
      multiply_by_parameter_scale: scale updates by the parameter's rms.
      clipping_threshold: of the update's rms; None for none.
      momentum: decay of a first moment; None for none.
      factored: factor the second moment of matrices with both sides at least 128. The published
        rules meant prompts to be unfactored, though T5X does factor prompts from length 128 on.
      pretrained_steps: where the step count of the second moment's decay starts. Published runs go
        on from the checkpoint's step, which makes every update's rms the clip: 0.3 here. 0 starts
        afresh.
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
    """`optimizer` on trained leaves, a zero update and no state on frozen ones."""
    return optax.multi_transform({"train": optimizer, "frozen": optax.set_to_zero()}, split.labels)
