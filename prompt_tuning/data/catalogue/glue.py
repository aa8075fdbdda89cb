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
from prompt_tuning.data.catalogue import postprocess, site_rows, text_formats, text_task
from prompt_tuning.data.catalogue.postprocess import TRUTH
from prompt_tuning.data.catalogue.text_task import TFDS, TextTask
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.local_files import JSON_LINES, TSV, Between, Kind, LocalFiles
from prompt_tuning.data.variants import few_shot
from prompt_tuning.errors import UserError

VERSIONS = {"super_glue": ("1.0.2", "v102"), "glue": ("2.0.0", "v200")}

ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")
NLI_FIELDS = ("hypothesis", "premise")
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
QQP_SITE = {"renamed": {"label": "is_duplicate"}}


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
    renamed: Mapping[str, str] | None = None,
    files: Mapping[str, Any] | None = None,
    site: Mapping[str, Any] | None = None,
    **options: Any,
) -> Benchmark:
    """Makes a benchmark task with label words.

    Args:
      suite, name, labels: See `Benchmark`.
      fields, keys: See `text_formats.classification`.
      local: Folder of JSON lines; "" for none.
      renamed: Their names of columns.
      files: Further fields of their `LocalFiles`.
      site: Fields of the `LocalFiles` of its site's files, tables by default; None if these are
        JSON lines as those of `local`.
      options: Further fields of `TextTask`.
    """
    columns: dict[str, Kind] = {(keys or {}).get(field, field): str for field in fields}
    columns["label"] = labels
    of = functools.partial(LocalFiles, columns=columns, target="label")
    defaults: dict[str, Any] = {"metrics": (metrics.accuracy,)}
    if site is not None:
        defaults["sites"] = (of(**{"folder": name, "endings": TSV, **site}),)
    return _benchmark(
        suite,
        name,
        format=functools.partial(
            text_formats.classification, fields=fields, labels=labels, keys=keys
        ),
        postprocess=functools.partial(postprocess.label_index, labels=labels),
        labels=labels,
        local=of(local, renamed=renamed or {}, **files or {}) if local else None,
        **defaults | options,
    )


_super_glue = functools.partial(_classification, "super_glue")
glue = functools.partial(_classification, "glue")


def mrpc_sites(labels: Sequence[str]) -> tuple[LocalFiles, ...]:
    """GLUE's tables of MRPC, and those of its source."""
    columns: dict[str, Kind] = dict.fromkeys((*PAIR, "id1", "id2"), str)
    columns["label"] = labels
    renamed = {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}
    options: dict[str, Any] = {
        "renamed": renamed | {"id1": "#1 ID", "id2": "#2 ID"},
        "endings": TSV,
        "target": "label",
    }
    kinds = (LocalFiles, site_rows.MrpcFiles)
    return tuple(kind("mrpc", columns, **options) for kind in kinds)


_SPAN_TYPES = {"span1_text": str, "span1_index": int, "span2_text": str, "span2_index": int}
_wsc = functools.partial(
    _benchmark,
    "super_glue",
    "wsc",
    postprocess=postprocess.wsc,
    config="wsc.fixed",
    local=LocalFiles(
        "wsc",
        {"text": str, **_SPAN_TYPES, "label": TRUTH},
        expand=site_rows.wsc_spans,
        adapt=site_rows.wsc_row,
        target="label",
    ),
)

_record = functools.partial(
    LocalFiles,
    columns={"passage": str, "query": str, "entities": list, "answers": list},
    adapt_all=site_rows.record_rows,
    target="answers",
    hidden=[],
)
_SIMILARITY = Between(0, 5)
_stsb = functools.partial(
    LocalFiles,
    columns={**dict.fromkeys(PAIR, str), "label": _SIMILARITY},
    renamed={"label": "score"},
    target="label",
    hidden=-1.0,
)
_MNLI_COLUMNS = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}


def _mnli_site(splits: Mapping[str, str]) -> dict[str, Any]:
    stems = {split: (stem,) for split, stem in splits.items()}
    return {"folder": "mnli", "renamed": _MNLI_COLUMNS, "stems": stems}


BENCHMARKS = (
    _super_glue(
        "boolq",
        ("passage", "question"),
        TRUTH,
        local="boolq",
        files={"optional": {"title": str}, "adapt": site_rows.boolq_row},
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
        local=LocalFiles(
            "multirc",
            {
                "question": str,
                "answer": str,
                "label": TRUTH,
                **dict.fromkeys(("pid", "qid", "aid"), int),
            },
            optional={"paragraph": str},
            expand=site_rows.multirc_answers,
            adapt_all=site_rows.multirc_rows,
            target="label",
        ),
    ),
    _benchmark(
        "super_glue",
        "record",
        format=text_formats.record,
        postprocess=postprocess.record,
        metrics=(metrics.record,),
        examples_per_row=138_854 / 100_730,
        local=_record("record_fewshot"),
        sites=(_record("record", expand=site_rows.record_queries),),
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
        site={"endings": JSON_LINES, "stems": {"test": ("AX-b",)}},
    ),
    _super_glue(
        "axg",
        NLI_FIELDS,
        ENTAILMENT,
        splits=("test",),
        hidden=(),
        site={"endings": JSON_LINES, "stems": {"test": ("AX-g",)}},
    ),
    glue(
        "cola",
        ("sentence",),
        ("unacceptable", "acceptable"),
        metrics=(metrics.matthews_corrcoef,),
        local="cola",
        renamed={"sentence": "text"},
        site={
            "headers": dict.fromkeys(
                ("train", "validation"), ("source", "label", "mark", "sentence")
            )
        },
    ),
    glue(
        "sst2",
        ("sentence",),
        ("negative", "positive"),
        local="sst2",
        renamed={"sentence": "text"},
        site={},
    ),
    glue(
        "mrpc",
        PAIR,
        ("not_equivalent", "equivalent"),
        metrics=(metrics.f1, metrics.accuracy),
        local="mrpc",
        sites=mrpc_sites(("not_equivalent", "equivalent")),
    ),
    glue(
        "qqp",
        QUESTIONS,
        ("not_duplicate", "duplicate"),
        metrics=(metrics.f1, metrics.accuracy),
        site=QQP_SITE,
    ),
    _benchmark(
        "glue",
        "stsb",
        format=text_formats.similarity,
        postprocess=postprocess.score,
        metrics=(metrics.pearson_corrcoef, metrics.spearman_corrcoef),
        scores=_SIMILARITY,
        local=_stsb("stsb"),
        sites=(_stsb("stsb", endings=TSV),),
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
        site=_mnli_site(
            {
                "train": "train",
                "validation_matched": "dev_matched",
                "validation_mismatched": "dev_mismatched",
                "test_matched": "test_matched",
                "test_mismatched": "test_mismatched",
            }
        ),
    ),
    *(
        glue(
            f"mnli_{part}",
            NLI_FIELDS,
            MNLI,
            splits=("validation", "test"),
            site=_mnli_site({"validation": f"dev_{part}", "test": f"test_{part}"}),
        )
        for part in ("matched", "mismatched")
    ),
    glue("qnli", ("question", "sentence"), ENTAILMENT, local="qnli_dev", site={}),
    glue(
        "rte",
        PAIR,
        ENTAILMENT,
        local="rte",
        renamed={"sentence1": "premise", "sentence2": "hypothesis"},
        site={},
    ),
    glue("wnli", PAIR, ("not_entailment", "entailment"), local="wnli", site={}),
    glue(
        "ax",
        NLI_FIELDS,
        MNLI,
        metrics=(),
        splits=("test",),
        site={
            "folder": "diagnostic",
            "renamed": _MNLI_COLUMNS,
            "stems": {"test": ("diagnostic", "AX")},
        },
    ),
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

    Raises:
      UserError: If a task is given twice, such as with few examples and with all.
    """
    names: dict[str, str] = {}
    for task in results:
        plain = re.sub(few_shot.SUFFIX, "", task)
        if plain in names:
            raise UserError(
                f"{names[plain]} and {task} are one task of a score; give one of the two"
            )
        names[plain] = task
    results = {plain: results[task] for plain, task in names.items()}
    scores_by_name = {}
    for suite, score in (("super_glue", metrics.super_glue_score), ("glue", metrics.glue_score)):
        by_name = {
            b.name: results[b.task] for b in BENCHMARKS if b.suite == suite and results.get(b.task)
        }
        with contextlib.suppress(UserError):
            scores_by_name[f"{suite}_score"] = score(by_name)
    return scores_by_name
