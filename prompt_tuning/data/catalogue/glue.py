"""The tasks of GLUE and SuperGLUE, over TensorFlow Datasets or local files.

The names are those of the original code (github.com/google-research/prompt-tuning), except for
GLUE's version: v200, which TensorFlow Datasets can still build, where older runs have v002.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data.catalogue import glue_metrics as metrics
from prompt_tuning.data.catalogue import postprocess, text_formats, text_task
from prompt_tuning.data.catalogue.postprocess import TRUTH
from prompt_tuning.data.catalogue.text_task import TFDS, TextTask
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers import local_files
from prompt_tuning.data.variants import few_shot
from prompt_tuning.errors import UserError

VERSIONS = {"super_glue": ("1.0.2", "v102"), "glue": ("2.0.0", "v200")}

ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")
NLI_FIELDS = ("hypothesis", "premise")
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(TextTask):
    """A task of GLUE or SuperGLUE.

    Attributes:
      suite: Benchmark, "glue" or "super_glue".
      name: Name of the task within the benchmark.
    """

    suite: str
    name: str


def _benchmark(
    suite: str, name: str, *, config: str = "", variant: str = "", **options: Any
) -> Benchmark:
    """Makes a benchmark task.

    Args:
      suite, name: See `Benchmark`.
      config: Configuration of TensorFlow Datasets; "" if it is called `name`.
      variant: Part of the task's name that follows the version.
      options: Further fields of `TextTask`.
    """
    version, short = VERSIONS[suite]
    return Benchmark(
        suite=suite,
        name=name,
        task=f"taskless_{suite}_{name}_{short}{variant}_examples",
        tfds_name=f"{suite}/{config or name}:{version}",
        **{"hidden": ("test",)} | options,
    )


def _classification(
    suite: str,
    name: str,
    fields: Sequence[str],
    labels: Sequence[str],
    *,
    keys: Mapping[str, str] | None = None,
    local: str = "",
    extra: Mapping[str, type] | None = None,
    renamed: Mapping[str, str] | None = None,
    adapt: local_files.Adapt | None = None,
    **options: Any,
) -> Benchmark:
    columns: dict[str, type | Sequence[str]] = dict.fromkeys(fields, str)
    columns |= {**(extra or {}), "label": labels}
    return _benchmark(
        suite,
        name,
        format=functools.partial(
            text_formats.classification, fields=fields, labels=labels, keys=keys
        ),
        postprocess=functools.partial(postprocess.label_index, labels=labels),
        labels=labels,
        local=local_files.LocalFiles(local, columns, renamed or {}, adapt) if local else None,
        **{"metrics": (metrics.accuracy,)} | options,
    )


_super_glue = functools.partial(_classification, "super_glue")
glue = functools.partial(_classification, "glue")
_SPAN_TYPES = {"span1_text": str, "span1_index": int, "span2_text": str, "span2_index": int}
_wsc = functools.partial(
    _benchmark,
    "super_glue",
    "wsc",
    postprocess=postprocess.wsc,
    config="wsc.fixed",
    local=local_files.LocalFiles(
        "wsc", {"text": str, **_SPAN_TYPES, "label": TRUTH}, adapt=local_files.wsc_row
    ),
)

BENCHMARKS = (
    _super_glue(
        "boolq",
        ("passage", "question"),
        TRUTH,
        local="boolq",
        extra={"title": str},
        adapt=local_files.boolq_row,
    ),
    _super_glue(
        "cb",
        NLI_FIELDS,
        ("entailment", "contradiction", "neutral"),
        metrics=(metrics.mean_3class_f1, metrics.accuracy),
        local="cb",
    ),
    _super_glue(
        "copa",
        ("choice1", "choice2", "premise", "question"),
        ("choice1", "choice2"),
        local="copa",
    ),
    _benchmark(
        "super_glue",
        "multirc",
        format=functools.partial(text_formats.multirc, labels=TRUTH),
        postprocess=postprocess.multirc,
        metrics=(metrics.multirc_f1, metrics.multirc_exact_match),
        labels=TRUTH,
        local=local_files.LocalFiles(
            "multirc",
            {
                "question": str,
                "answer": str,
                "label": TRUTH,
                **dict.fromkeys(("pid", "qid", "aid"), int),
            },
            adapt_all=local_files.multirc_rows,
        ),
    ),
    _benchmark(
        "super_glue",
        "record",
        format=text_formats.record,
        postprocess=postprocess.record,
        metrics=(metrics.record,),
        examples_per_row=138_854 / 100_730,
        local=local_files.LocalFiles(
            "record_fewshot",
            {"passage": str, "query": str, "entities": list, "answers": list},
            adapt_all=local_files.record_rows,
        ),
    ),
    _super_glue("rte", NLI_FIELDS, ENTAILMENT, local="rte"),
    _super_glue("wic", (*PAIR, "word"), TRUTH, local="wic"),
    _wsc(
        format=functools.partial(text_formats.wsc, true_only=True),
        metrics=(),
        variant="_simple_train",
        examples_per_row=259 / 554,
        splits=("train",),
        hidden=(),
    ),
    _wsc(
        format=text_formats.wsc,
        metrics=(metrics.accuracy,),
        variant="_simple_eval",
        splits=("validation", "test"),
    ),
    # Diagnostics for models trained on RTE; T5 has no metrics for them, SuperGLUE does.
    _super_glue(
        "axb",
        NLI_FIELDS,
        ENTAILMENT,
        keys={"premise": "sentence1", "hypothesis": "sentence2"},
        metrics=(metrics.matthews_corrcoef,),
        splits=("test",),
        hidden=(),
    ),
    _super_glue("axg", NLI_FIELDS, ENTAILMENT, splits=("test",), hidden=()),
    glue(
        "cola",
        ("sentence",),
        ("unacceptable", "acceptable"),
        metrics=(metrics.matthews_corrcoef,),
        local="cola",
        renamed={"sentence": "text"},
    ),
    glue(
        "sst2",
        ("sentence",),
        ("negative", "positive"),
        local="sst2",
        renamed={"sentence": "text"},
    ),
    glue(
        "mrpc",
        PAIR,
        ("not_equivalent", "equivalent"),
        metrics=(metrics.f1, metrics.accuracy),
        local="mrpc",
    ),
    glue(
        "qqp",
        QUESTIONS,
        ("not_duplicate", "duplicate"),
        metrics=(metrics.f1, metrics.accuracy),
    ),
    _benchmark(
        "glue",
        "stsb",
        format=text_formats.similarity,
        postprocess=postprocess.score,
        metrics=(metrics.pearson_corrcoef, metrics.spearman_corrcoef),
        local=local_files.LocalFiles(
            "stsb", {**dict.fromkeys(PAIR, str), "label": float}, renamed={"label": "score"}
        ),
    ),
    glue(
        "mnli",
        NLI_FIELDS,
        MNLI,
        splits=(
            "train",
            "validation_matched",
            "validation_mismatched",
            "test_matched",
            "test_mismatched",
        ),
        hidden=("test_matched", "test_mismatched"),
    ),
    glue("mnli_matched", NLI_FIELDS, MNLI, splits=("validation", "test")),
    glue("mnli_mismatched", NLI_FIELDS, MNLI, splits=("validation", "test")),
    glue("qnli", ("question", "sentence"), ENTAILMENT, local="qnli_dev"),
    glue(
        "rte",
        PAIR,
        ENTAILMENT,
        local="rte",
        renamed={"sentence1": "premise", "sentence2": "hypothesis"},
    ),
    glue("wnli", PAIR, ("not_entailment", "entailment"), local="wnli"),
    glue("ax", NLI_FIELDS, MNLI, metrics=(), splits=("test",)),
)

# A mixture trains on its tasks with a split "train" and is evaluated on those with "validation".
MIXTURES = {
    "taskless_super_glue_wsc_and_dev_v102_simple_examples": (
        "taskless_super_glue_wsc_v102_simple_train_examples",
        "taskless_super_glue_wsc_v102_simple_eval_examples",
    ),
    "taskless_glue_mnli_and_dev_v200_examples": (
        "taskless_glue_mnli_v200_examples",
        "taskless_glue_mnli_matched_v200_examples",
        "taskless_glue_mnli_mismatched_v200_examples",
    ),
}


def register_benchmarks(vocabulary: seqio.Vocabulary, source: str | Path = TFDS) -> tuple[str, ...]:
    """Registers `BENCHMARKS` and `MIXTURES`, and returns their names; see `text_task.register`."""
    registered = text_task.register(BENCHMARKS, vocabulary, source)
    return registered + register_mixtures(registered)


def register_mixtures(registered: Collection[str]) -> tuple[str, ...]:
    """Registers `MIXTURES` of those tasks that are registered, and returns their names."""
    by_name = {benchmark.task: benchmark for benchmark in BENCHMARKS}
    mixtures = {name: [by_name[part] for part in parts] for name, parts in MIXTURES.items()}
    return text_task.add_equal_mixtures(mixtures, registered)


def scores(results: metrics.Results) -> dict[str, float]:
    """Computes `super_glue_score` and `glue_score` of the suites that are complete.

    Args:
      results: Metrics by SeqIO task, few-shot or not.
    """
    results = {re.sub(few_shot.SUFFIX, "", task): values for task, values in results.items()}
    scores_by_name = {}
    for suite, score in (("super_glue", metrics.super_glue_score), ("glue", metrics.glue_score)):
        by_name = {
            b.name: results[b.task] for b in BENCHMARKS if b.suite == suite and results.get(b.task)
        }
        with contextlib.suppress(UserError):
            scores_by_name[f"{suite}_score"] = score(by_name)
    return scores_by_name
