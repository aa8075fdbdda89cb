"""The trainer: builds a model (`initialize`) and trains it (`fit`, `Fit`)."""

from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.training.loop import Evaluator, Fit, create_state, fit

__all__ = ["Evaluator", "Fit", "TunedModel", "create_state", "fit", "initialize"]
