"""The tasks of GLUE and SuperGLUE, over TensorFlow Datasets or over local files.

Names are those of the original code (github.com/google-research/prompt-tuning), GLUE's with the
version that TensorFlow Datasets can still build: v200, where older runs have v002.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data import benchmark_metrics as metrics
from prompt_tuning.data import local_files, postprocess, tasks, text_formats
from prompt_tuning.data.postprocess import TRUTH
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.errors import UserError

TFDS = "tfds"
VERSIONS = {"super_glue": ("1.0.2", "v102"), "glue": ("2.0.0", "v200")}

ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")
NLI_FIELDS = ("hypothesis", "premise")
PAIR = ("sentence1", "sentence2")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A task of GLUE or SuperGLUE.

    Attributes:
      suite: "glue" or "super_glue".
      name: of the task within it.
      format: the preprocessor.
      postprocess: of targets and predictions.
      metrics: the first chooses the best step.
      labels: words in the order of the labels' numbers; none for other than classification.
      config: of TensorFlow Datasets, if it is not `name`.
      variant: behind the version in the name of the SeqIO task.
      splits: of TensorFlow Datasets.
      hidden: splits whose targets TensorFlow Datasets does not have.
      local: its files, if the shared data have it.
    """

    suite: str
    name: str
    format: Callable[..., tf.data.Dataset]
    postprocess: Callable[..., Any]
    metrics: Sequence[Callable[..., Mapping[str, float]]]
    labels: Sequence[str] = ()
    config: str = ""
    variant: str = ""
    splits: Sequence[str] = local_files.SPLITS
    hidden: Sequence[str] = ("test",)
    local: local_files.LocalFiles | None = None

    @property
    def task(self) -> str:
        """Name of the SeqIO task."""
        return f"taskless_{self.suite}_{self.name}_{VERSIONS[self.suite][1]}{self.variant}_examples"

    @property
    def tfds_name(self) -> str:
        return f"{self.suite}/{self.config or self.name}:{VERSIONS[self.suite][0]}"


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
    return Benchmark(
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
_glue = functools.partial(_classification, "glue")
_SPAN_TYPES = {"span1_text": str, "span1_index": int, "span2_text": str, "span2_index": int}
_wsc = functools.partial(
    Benchmark,
    "super_glue",
    "wsc",
    postprocess=postprocess.wsc,
    config="wsc.fixed",
    local=local_files.LocalFiles(
        "wsc", {"text": str, **_SPAN_TYPES, "label": TRUTH}, adapt=local_files.wsc_rows
    ),
)

BENCHMARKS = (
    _super_glue(
        "boolq",
        ("passage", "question"),
        TRUTH,
        local="boolq",
        extra={"title": str},
        adapt=local_files.boolq_rows,
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
    Benchmark(
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
            adapt=local_files.multirc_rows,
        ),
    ),
    Benchmark(
        "super_glue",
        "record",
        format=text_formats.record,
        postprocess=postprocess.record,
        metrics=(metrics.record,),
        local=local_files.LocalFiles(
            "record_fewshot",
            {"passage": str, "query": str, "entities": list, "answers": list},
            adapt=local_files.record_rows,
        ),
    ),
    _super_glue("rte", NLI_FIELDS, ENTAILMENT, local="rte"),
    _super_glue("wic", (*PAIR, "word"), TRUTH, local="wic"),
    _wsc(
        format=functools.partial(text_formats.wsc, true_only=True),
        metrics=(),
        variant="_simple_train",
        splits=("train",),
        hidden=(),
    ),
    _wsc(
        format=text_formats.wsc,
        metrics=(metrics.accuracy,),
        variant="_simple_eval",
        splits=("validation", "test"),
    ),
    # Diagnostics for what is trained on RTE; T5 has no metrics for them, SuperGLUE does.
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
    _glue(
        "cola",
        ("sentence",),
        ("unacceptable", "acceptable"),
        metrics=(metrics.matthews_corrcoef,),
        local="cola",
        renamed={"sentence": "text"},
    ),
    _glue(
        "sst2",
        ("sentence",),
        ("negative", "positive"),
        local="sst2",
        renamed={"sentence": "text"},
    ),
    _glue(
        "mrpc",
        PAIR,
        ("not_equivalent", "equivalent"),
        metrics=(metrics.f1, metrics.accuracy),
        local="mrpc",
    ),
    _glue(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        metrics=(metrics.f1, metrics.accuracy),
    ),
    Benchmark(
        "glue",
        "stsb",
        format=text_formats.similarity,
        postprocess=postprocess.score,
        metrics=(metrics.pearson_corrcoef, metrics.spearman_corrcoef),
        local=local_files.LocalFiles(
            "stsb", {**dict.fromkeys(PAIR, str), "label": float}, renamed={"label": "score"}
        ),
    ),
    _glue(
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
    _glue("mnli_matched", NLI_FIELDS, MNLI, splits=("validation", "test")),
    _glue("mnli_mismatched", NLI_FIELDS, MNLI, splits=("validation", "test")),
    _glue("qnli", ("question", "sentence"), ENTAILMENT, local="qnli_dev"),
    _glue(
        "rte",
        PAIR,
        ENTAILMENT,
        local="rte",
        renamed={"sentence1": "premise", "sentence2": "hypothesis"},
    ),
    _glue("wnli", PAIR, ("not_entailment", "entailment"), local="wnli"),
    _glue("ax", NLI_FIELDS, MNLI, metrics=(), splits=("test",)),
)

# A mixture trains on what of it has the split "train", and is measured on what has "validation".
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

_HIDDEN: dict[str, tuple[str, ...]] = {}  # splits without targets of each task registered


def register_benchmarks(vocabulary: seqio.Vocabulary, source: str | Path = TFDS) -> tuple[str, ...]:
    """Registers the SeqIO tasks, replacing those of the same name; downloads nothing.

    Args:
      vocabulary: of inputs and targets.
      source: "tfds", or a folder of data sets as `LocalFiles` describes; of what it does not hold
        nothing is registered.

    Returns:
      The names of tasks and mixtures.

    Raises:
      UserError: if the folder holds none of them.
    """
    names = [b.task for b in BENCHMARKS if _register(b, vocabulary, source)]
    if not names:
        folders = sorted({b.local.folder for b in BENCHMARKS if b.local})
        raise UserError(f"{source}: no .jsonl files in folders named {', '.join(folders)}")
    for mixture, parts in MIXTURES.items():
        if there := [part for part in parts if part in names]:
            seqio.MixtureRegistry.remove(mixture)
            seqio.MixtureRegistry.add(mixture, there, default_rate=1.0)
            tasks.LABELS[mixture] = tasks.labels_of(there[0])
            names.append(mixture)
    return tuple(names)


def hidden_splits(task: str) -> tuple[str, ...]:
    """Splits of a registered task that can be predicted on but not measured."""
    return _HIDDEN.get(task, ())


def scores(results: metrics.Results) -> dict[str, float]:
    """`super_glue_score` and `glue_score` by SeqIO task, if no task is missing."""
    found = {}
    for suite, score in (("super_glue", metrics.super_glue_score), ("glue", metrics.glue_score)):
        there = {
            b.name: results[b.task] for b in BENCHMARKS if b.suite == suite and results.get(b.task)
        }
        with contextlib.suppress(UserError):
            found[f"{suite}_score"] = score(there)
    return found


def _register(benchmark: Benchmark, vocabulary: seqio.Vocabulary, source: str | Path) -> bool:
    """Whether `source` has the task."""
    found = _tfds(benchmark) if source == TFDS else _folder(benchmark, Path(source))
    if found is None:
        return False
    name = benchmark.task
    tasks.LABELS[name] = tuple(benchmark.labels)
    _HIDDEN[name] = tuple(benchmark.hidden) if source == TFDS else ()
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=found,
        preprocessors=[
            benchmark.format,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        postprocess_fn=benchmark.postprocess,
        metric_fns=list(benchmark.metrics),
        output_features=tasks.features(vocabulary),
        # The folder's own shuffle is whole; SeqIO's buffer lets the epochs run into each other.
        **({} if source == TFDS else {"shuffle_buffer_size": None}),
    )
    return True


def _tfds(benchmark: Benchmark) -> seqio.DataSource:
    return seqio.TfdsDataSource(benchmark.tfds_name, splits=benchmark.splits)


def _folder(benchmark: Benchmark, root: Path) -> seqio.DataSource | None:
    if benchmark.local is None:
        return None
    paths = benchmark.local.paths(root.expanduser())
    there = {split: path for split, path in paths.items() if split in benchmark.splits}
    return local_files.FolderSource(benchmark.local, there) if there else None
