"""Scores a tuned model on a task: the public names of `evaluation`."""

from prompt_tuning.evaluation.predict import generate, rank_labels
from prompt_tuning.evaluation.scores import measure, score
from prompt_tuning.evaluation.sets import EvalSet, Predictions

__all__ = ["EvalSet", "Predictions", "generate", "measure", "rank_labels", "score"]
