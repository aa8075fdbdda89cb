"""Paraphrases across domains: a prompt trained on QQP, evaluated on MRPC, and the reverse.

Lester et al., 2021 (arXiv 2104.08691), table 2. The label words of the two tasks differ, so each
evaluation task has the text of its own examples and the label words of the other. The original code
translates the predictions instead, under the same names; the metrics are equal.
"""

from collections.abc import Collection
from typing import Any

from prompt_tuning.data.catalogue import glue_metrics as metrics
from prompt_tuning.data.catalogue import text_task
from prompt_tuning.data.catalogue.glue import (
    BENCHMARKS,
    PAIR,
    QQP_SITE,
    QUESTIONS,
    VERSIONS,
    glue,
    mrpc_sites,
)

_GLUE = {benchmark.name: benchmark for benchmark in BENCHMARKS if benchmark.suite == "glue"}
_QQP, _MRPC = _GLUE["qqp"], _GLUE["mrpc"]
_OPTIONS: dict[str, Any] = {
    "metrics": (metrics.f1, metrics.accuracy),
    "splits": ("validation",),
    "hidden": (),
}

MRPC_FROM_QQP = glue(
    "mrpc_from_qqp",
    PAIR,
    _QQP.labels,
    config="mrpc",
    local="mrpc",
    sites=mrpc_sites(_QQP.labels),
    **_OPTIONS,
)
QQP_FROM_MRPC = glue(
    "qqp_from_mrpc",
    QUESTIONS,
    _MRPC.labels,
    config="qqp",
    site={"folder": "qqp", **QQP_SITE},
    **_OPTIONS,
)
TASKS = (MRPC_FROM_QQP, QQP_FROM_MRPC)


def register_mixtures(registered: Collection[str]) -> tuple[str, ...]:
    """Registers "train on one, evaluate on both" with those tasks that are registered.

    Returns:
      The names of the mixtures.
    """
    pairs = ((_QQP, MRPC_FROM_QQP), (_MRPC, QQP_FROM_MRPC))
    version = VERSIONS["glue"][1]
    mixtures = {f"taskless_glue_{b.name}_zeroshot_{version}_examples": (a, b) for a, b in pairs}
    return text_task.add_equal_mixtures(mixtures, registered)
