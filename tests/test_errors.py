"""Settings of another type than theirs, at the doors of the Python API."""

import re

import numpy as np
import pytest

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.source import task_data
from prompt_tuning.errors import UserError
from prompt_tuning.methods.base import Method
from prompt_tuning.runs.as_trained import as_trained
from prompt_tuning.serving.model import Model
from prompt_tuning.testing import Numbers, tiny_model
from prompt_tuning.training.loop import Fit

LENGTHS = {"inputs": 16, "targets": 8}


def of_demo(**settings) -> TaskData:
    return task_data(
        task="demo_reviews",
        files=TextFiles(),
        vocabulary=tasks.vocabulary(embedded.vocabulary()),
        lengths=LENGTHS,
        batch_size=2,
        **settings,
    )


def tiny_server(**settings) -> Model:
    tuned = tiny_model(Method())
    return Model(tuned.model.config, tuned.backbone, Numbers(), tuned.layout, **settings)


@pytest.mark.parametrize("value", ["no", "False", 0, 1, None, [], np.int64(1)])
def test_switches_are_true_or_false(value):
    """As texts they would all count as true."""
    for make in (
        lambda: TaskData("demo_reviews", LENGTHS, 2, balanced_classes=value),
        lambda: TaskData("demo_reviews", LENGTHS, 2, use_cached=value),
        lambda: TextFiles(keep_columns=value),
        lambda: Fit(total_steps=1, resume_with_changes=value),
        lambda: of_demo(sentinel_targets=value),
        lambda: of_demo(balanced_classes=value),
        lambda: as_trained(Method(), None, allow_other_settings=value),
        lambda: tiny_server(allow_other_backbone=value),
    ):
        with pytest.raises(UserError, match=f"= {re.escape(repr(value))}: must be True or False"):
            make()
    if value is not None:
        with pytest.raises(UserError, match=r"QUOTED_CELLS = .*: must be True or False"):
            TextFiles(quoted_cells=value)


def test_numpys_switches():
    data = TaskData("demo_reviews", LENGTHS, 2, balanced_classes=np.bool_(False))
    assert not data.balanced_classes and not of_demo(sentinel_targets=np.False_).target_prefix


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip_bad_rows": "2"}, "SKIP_BAD_ROWS = '2': must be a whole number"),
        ({"skip_bad_rows": True}, "SKIP_BAD_ROWS = True: must be a whole number"),
        ({"batching": "bucketed", "tokens_per_batch": 2.5}, "TOKENS_PER_BATCH = 2.5: must be"),
        ({"batching": "bucketed", "bucket_bounds": (4, "8")}, "BUCKET_BOUNDS, a length = '8'"),
    ],
)
def test_numbers_of_another_type(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        of_demo(**settings)
