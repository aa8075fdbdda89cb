"""Short names of tasks, as `padding_report --task` takes them."""

import pytest

from prompt_tuning.data.catalogue.all_tasks import full_name
from prompt_tuning.errors import UserError

REGISTERED = (
    "taskless_glue_rte_v200_examples",
    "taskless_glue_sst2_v200_examples",
    "taskless_super_glue_rte_v102_examples",
    "taskless_super_glue_wsc_v102_simple_eval_examples",
    "taskless_super_glue_wsc_v102_simple_train_examples",
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sst2", "taskless_glue_sst2_v200_examples"),
        ("rte", "taskless_super_glue_rte_v102_examples"),
        ("demo_reviews", "demo_reviews"),
    ],
)
def test_a_short_name_means_one_task(name, meant):
    assert full_name(name, REGISTERED) == meant


def test_a_name_of_two_tasks_is_an_error():
    with pytest.raises(
        UserError, match=r"--task=wsc: must name one task; available: .*_eval_.*_train_"
    ):
        full_name("wsc", REGISTERED)
