"""An optax optimizer on some leaves and a zero update on all others, as an optimizer of T5X."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import core
from t5x import optimizers

from prompt_tuning.in_t5x.variables import labels

Optimizer = Callable[[Any], optax.GradientTransformation]  # of a learning rate


class OnlyTrained(optimizers.OptaxWrapper):
    """Follows T5X's learning-rate schedule, which `OptaxWrapper` ignores.

    Frozen leaves get a zero update and have no state, so the compiler drops their gradients.
    """

    def __init__(self, optimizer: Optimizer, is_trained: Callable[[str], bool]) -> None:
        """Makes the optimizer.

        Args:
          optimizer: Function from a learning rate to any optax optimizer.
          is_trained: Function from the path of a leaf to whether it is trained.
        """
        self._optimizer, self._is_trained = optimizer, is_trained
        super().__init__(self._transform(0.0))

    def _transform(self, learning_rate: Any) -> optax.GradientTransformation:
        transforms = {"train": self._optimizer(learning_rate), "frozen": optax.set_to_zero()}
        # A state path of T5X has these labels in it: neither may be a word of the user's patterns.
        return optax.multi_transform(transforms, functools.partial(labels, self._is_trained))

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> Any:
        current = optimizers.OptaxWrapper(self._transform(hyper_params.learning_rate))
        return current.apply_gradient(hyper_params, params, state, grads)

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """Replicates the state: it is that of few parameters.

        T5X's rules would refuse the state of an optimizer that they do not know.
        """
        axes = jax.tree.map(lambda _: None, optimizer.state_dict())
        axes["target"] = param_logical_axes
        return optimizer.restore_state(core.unfreeze(axes))
