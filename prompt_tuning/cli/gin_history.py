"""Reads gin files of earlier versions, such as a run's `config.gin`, by today's names."""

import io
import re
from typing import IO

_MODULES = {
    "prompt_tuning import loss": "prompt_tuning.training import loss",
    "prompt_tuning import optim": "prompt_tuning.training import optim",
    "prompt_tuning import schedules": "prompt_tuning.training import schedules",
    "prompt_tuning.data import token_cache": "prompt_tuning.data.batching import token_cache",
    "prompt_tuning.data import benchmarks": "prompt_tuning.data.catalogue import glue",
    "prompt_tuning.data import prompt_design": "prompt_tuning.data.variants import prompt_design",
    "prompt_tuning.data import pretraining": "prompt_tuning.pretraining import mixture",
    "prompt_tuning.data import task_rows": "prompt_tuning.serving import task_rows",
}
_FILES = {
    "models/t5.gin": "common/t5.gin",
    "models/ladder.gin": "common/ladder.gin",
    "methods/prompt_file.gin": "common/trained.gin",
    "methods/prompt_init.gin": "common/prompt_init.gin",
    "runs/data.gin": "common/data.gin",
    "runs/layout.gin": "common/layout.gin",
}
_FIT = (
    "total_steps|learning_rate|optimizer|loss|num_microbatches|eval_period|checkpoint_period|"
    "log_period|keep"
)
# Patterns of lines and what they become, in this order.
_LINES = (
    *((rf"^from {old}$", f"from {new}") for old, new in _MODULES.items()),
    *((rf"^include (['\"]){old}\1", f"include '{new}'") for old, new in _FILES.items()),
    (r"^(suite\.suite\.(config|method|layout)|ensemble\.ensemble\.method) = .*\n", ""),
    (rf"^((?:\w+/)?)(?:train\.train|pretrain\.pretrain)\.({_FIT}) = ", r"\1loop.Fit.\2 = "),
    (r"(?<=@)benchmarks\.(?=scores\b)", "glue."),
    (r"\bpretraining\.(?=(?:Mixture|Phase)\b)", "mixture."),
    (r"\blayout\.layout\b", "layout.choose"),
    (r"\bsuite\.suite\b", "suite.train_tasks"),
    (r"^TRAIN_STEPS_RELATIVE\b", "TRAIN_STEPS"),  # of T5X, whose TRAIN_STEPS are others
    (r"\bensemble\.ensemble\b", "ensemble.evaluate"),
)
_IMPORTS = "from __gin__ import dynamic_registration\n"
# What a run's file has to say since its settings of training are those of `loop.Fit`.
_TRAINING = """
from prompt_tuning.model import summary
from prompt_tuning.training import loop
loop.Fit.seed = %RANDOM_SEED
summary.plan.config = %MODEL
summary.plan.layout = %LAYOUT
summary.plan.method = %METHOD
"""
_PRETRAINING = """
from prompt_tuning.training import loss
loop.Fit.checkpoint_period = 100
loop.Fit.loss = @loss.Loss()
loss.Loss.normalizing_factor = 'NUM_REAL_TARGET_TOKENS'
"""


def opened(path: str) -> IO[str]:
    """Opens a gin file; one of an earlier version reads as it would be written today."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    stream = io.StringIO(rewritten(text))
    stream.name = path  # where gin's errors say that a statement is
    return stream


def rewritten(text: str) -> str:
    """Returns the text of a gin file of an earlier version with today's names."""
    fit = re.search(rf"^(\w+)\.\1\.({_FIT}) = ", text, re.MULTILINE)
    for pattern, replacement in _LINES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    if fit:
        run = f"{fit[1]}.{fit[1]}"
        added = _TRAINING + (_PRETRAINING if fit[1] == "pretrain" else "")
        text = text.replace(_IMPORTS, _IMPORTS + added, 1) + f"\n{run}.fit = @loop.Fit()\n"
    return text
