"""What training and evaluation read: batches and evaluation sets of a SeqIO task, in NumPy."""

import dataclasses
import difflib
import functools
import importlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.batching.bucketing import bucketed, constant_tokens, default_bounds, pad
from prompt_tuning.data.batching.packing import Example, pack, packed
from prompt_tuning.data.batching.tokens import chunks, in_memory, mixed
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.data.tasks import RowSource, decode, hidden_splits, labels_of, text_of
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import EvalSet, MetricFn

FEATURES = ("inputs", "targets")
BATCHINGS = ("padded", "bucketed", "packed")


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A SeqIO task or mixture as arrays.

    Attributes:
      task: its registered name.
      lengths: tokens, with EOS, of "inputs" (longer ones are cut) and "targets".
      batch_size: examples in a batch of all processes together.
      seed: of the order.
      module: imported first; registers tasks.
      use_cached: reads tasks that allow it from SeqIO's cache.
      batching: "padded" to the full lengths; "bucketed", batches of similar input length; or
        "packed", several examples a row.
      bucket_bounds: input lengths of the buckets; () for powers of two to the full length.
      packed_lengths: of a packed row; None for one full input (and the prompt) and eight targets.
      tokens_per_batch: input positions of a bucketed batch, whose rows then follow from its length;
        None for `batch_size` rows.
      cache_dir: a folder that keeps the tokens of training examples for the next run; "" for none.
      eval_examples: of a larger split so many examples are measured, the same ones each time; None
        for all.
      bad_rows: which malformed rows of its files are skipped; counts them.

    Raises:
      UserError: for an unknown task, a module that cannot be imported, or an impossible size.
    """

    task: str
    lengths: Mapping[str, int]
    batch_size: int
    seed: int = 0
    module: str | None = None
    use_cached: bool = False
    batching: str = "padded"
    bucket_bounds: Sequence[int] = ()
    packed_lengths: Mapping[str, int] | None = None
    tokens_per_batch: int | None = None
    cache_dir: str = ""
    eval_examples: int | None = None
    bad_rows: BadRows = dataclasses.field(default_factory=BadRows, compare=False)

    def __post_init__(self) -> None:
        if self.batching not in BATCHINGS:
            raise UserError(f"BATCHING = {self.batching!r}: choose from {', '.join(BATCHINGS)}")
        _check_lengths("TASK_FEATURE_LENGTHS", self.lengths)
        bounds = list(self.bucket_bounds)
        if bounds and (bounds != sorted(set(bounds)) or bounds[-1] < self.lengths["inputs"]):
            raise UserError(
                f"BUCKET_BOUNDS = {self.bucket_bounds}: must rise, and end with the input length "
                f"{self.lengths['inputs']} or more"
            )
        if self.packed_lengths is not None:
            _check_lengths("PACKED_LENGTHS", self.packed_lengths)
        if self.tokens_per_batch is not None and self.batching != "bucketed":
            raise UserError(
                f"TOKENS_PER_BATCH = {self.tokens_per_batch}: is for BATCHING = 'bucketed', not "
                f"{self.batching!r}, whose batches have BATCH_SIZE rows"
            )
        if self.batch_size < 1:
            raise UserError(f"BATCH_SIZE = {self.batch_size}: must be positive")
        if self.eval_examples is not None and self.eval_examples < 1:
            raise UserError(f"EVAL_EXAMPLES = {self.eval_examples}: must be positive, or None")
        if self.module:
            _import(self.module)
        _check_name(self.task)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits with public targets that the task, or any task of the mixture, has."""
        tasks = seqio.get_subtasks(seqio.get_mixture_or_task(self.task))
        found = {
            name for task in tasks for name in task.splits if name not in hidden_splits(task.name)
        }
        return tuple(sorted(found))

    @property
    def labels(self) -> tuple[str, ...]:
        """The task's label words; none for text to text."""
        return labels_of(self.task)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are trained on, in the order of a mixed batch's `tasks`; none without
        training data.
        """
        parts = seqio.get_subtasks(seqio.get_mixture_or_task(self.task))
        return tuple(task.name for task in parts if "train" in task.splits)

    def remarks(self) -> list[str]:
        """Lines for the end of a run: what the user should know of the data by then."""
        return [line for line in (self.bad_rows.summary(),) if line]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end token."""
        features = seqio.get_mixture_or_task(self.task).output_features
        return features["inputs"].vocabulary.encode(text)

    def train_batches(
        self, start: int, positions: int | None = 0, multiple: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """The shuffled, endless "train" batches, from batch `start` on.

        They are the same on every process; each device is given its rows of them. The order depends
        on the seed alone, if the task's source keeps to it. Of tasks registered elsewhere, targets
        that are too long are cut.

        Args:
          start: the first batch.
          positions: places that the method takes in front of each packed example; None if it
            cannot be packed.
          multiple: of which the rows of a batch must be one.

        Returns:
          Batches {encoder_input_tokens: [B, T], decoder_target_tokens, decoder_input_tokens,
          decoder_loss_weights: [B, L]} int32, packed ones with segments and positions, others of a
          mixture that fits in memory with tasks [B]; T is a bucket's bound or the full
          length (plus `positions`).

        Raises:
          UserError: if the task has no such split or it is empty, or a target is too long.
        """
        for task in self._tasks("train"):
            if isinstance(task.source, RowSource):
                targets = (row.targets for row in task.source.rows("train"))
                self._check_targets(task, targets)
            elif isinstance(task.source, MemorySource):
                task.source.size("train")  # mistakes in it show before a model is loaded
        if self.batching == "packed":
            return self._packed(start, positions)
        sizes = self._bucket_sizes(multiple)
        if self.batching == "padded":  # where a batch begins is known without those before it
            batches = bucketed(self._stream(start * self.batch_size), sizes)
        else:
            batches = itertools.islice(bucketed(self._stream(), sizes), start, None)
        return (pad(rows, bound, self.lengths["targets"]) for bound, rows in batches)

    def _packed(self, start: int, positions: int | None) -> Iterator[dict[str, np.ndarray]]:
        if positions is None:
            raise UserError("BATCHING = 'packed': only a prompt that is a prefix can be packed")
        source, target = self.lengths["inputs"] + positions, self.lengths["targets"]
        row = self.packed_lengths or {"inputs": source, "targets": 8 * target}
        if row["inputs"] < source or row["targets"] < target:
            raise UserError(
                f"PACKED_LENGTHS = {dict(row)}: a row must hold one example, "
                f"{source} and {target} positions"
            )
        lengths = {"input_length": row["inputs"], "target_length": row["targets"]}
        batches = packed(self._stream(), self.batch_size, prompt_length=positions, **lengths)
        return (
            pack(rows, prompt_length=positions, **lengths)
            for rows in itertools.islice(batches, start, None)
        )

    def _bucket_sizes(self, multiple: int) -> dict[int, int]:
        """Input lengths to rows of a batch."""
        full = self.lengths["inputs"]
        if self.batching == "padded":
            return {full: self.batch_size}
        bounds = tuple(self.bucket_bounds) or default_bounds(full)
        if self.tokens_per_batch is None:
            return dict.fromkeys(bounds, self.batch_size)
        return constant_tokens(bounds, self.tokens_per_batch, multiple)

    def _stream(self, first: int = 0) -> Iterator[Example]:
        """Shuffled, endless training examples of all processes, from the `first` on."""
        parts = [
            in_memory(task, "train", self.lengths, self.use_cached, self.cache_dir)
            for task in self._tasks("train")
        ]
        held = [part for part in parts if part is not None]
        if len(held) == len(parts):
            if not all(map(len, held)):
                raise _empty(self.task, "train")
            yield from mixed(held, self._rates(), self.seed, first)
        dataset = seqio.get_mixture_or_task(self.task).get_dataset(
            dict(self.lengths),
            split="train",
            use_cached=self.use_cached,
            shuffle=True,
            seed=self.seed,
            num_epochs=None,
        )
        yield from itertools.chain.from_iterable(chunks(dataset.skip(first)))
        raise _empty(self.task, "train")  # only of nothing comes an end

    def _rates(self) -> list[float]:
        """How often each training task of a mixture comes by, in relation to the others."""
        provider = seqio.get_mixture_or_task(self.task)
        if isinstance(provider, seqio.Task):
            return [1.0]
        return [provider.get_rate(task) for task in self._tasks("train")]

    def eval_sets(self, split: str) -> list[EvalSet]:
        """The evaluation sets of a mixture: of each task that has the split with public targets,
        and metrics; of a task, its own.

        Raises:
          UserError: if there is none, and whatever `eval_set` refuses.
        """
        measured = [
            task.name
            for task in self._tasks(split)
            if task.predict_metric_fns and split not in hidden_splits(task.name)
        ]
        if not measured:
            raise UserError(f"{self.task}: no task with metrics has the split {split!r}")
        return [dataclasses.replace(self, task=name).eval_set(split) for name in measured]

    def eval_set(self, split: str) -> EvalSet:
        """A split, or `eval_examples` drawn from it, in its order.

        Raises:
          UserError: if there is no such split or it is empty, a target or label word is too long,
            or it is a mixture, whose tasks have metrics of their own.
        """
        tasks = self._tasks(split)
        if isinstance(seqio.get_mixture_or_task(self.task), seqio.Mixture):
            names = ", ".join(task.name for task in tasks)
            raise UserError(f"{self.task} is a mixture; evaluate its tasks: {names}")
        [task] = tasks
        examples = self._examples(task, split)
        feature = task.output_features["targets"]
        targets = [text_of(task, example, "targets") for example in examples]
        labels = labels_of(task.name)
        self._check_targets(task, [*labels, *targets])
        label_ids = [
            [*feature.vocabulary.encode(label), feature.vocabulary.eos_id] for label in labels
        ]
        return EvalSet(
            task=task.name,
            split=split,
            inputs=[text_of(task, example, "inputs") for example in examples],
            targets=targets,
            encoder_input_tokens=_pad([e["inputs"] for e in examples], self.lengths["inputs"]),
            labels=labels,
            label_tokens=_pad(label_ids, self.lengths["targets"]),
            target_length=self.lengths["targets"],
            metric_fns=tuple(_over_texts(fn, task, examples) for fn in task.predict_metric_fns),
            decode=functools.partial(decode, feature.vocabulary),
        )

    def _tasks(self, split: str) -> list[seqio.Task]:
        """The tasks that have the split."""
        tasks = seqio.get_subtasks(seqio.get_mixture_or_task(self.task))
        found = [task for task in tasks if split in task.splits]
        if not found:
            there_are = ", ".join(self.splits)
            raise UserError(f"{self.task}: no split {split!r}; there are: {there_are}")
        for task in found:
            if self.use_cached and task.supports_caching and not task.cache_dir:
                raise UserError(f"{task.name}: is not cached; set USE_CACHED_TASKS = False")
            check_prepared(task, split, self.use_cached)
        return found

    def _examples(self, task: seqio.Task, split: str) -> list[dict[str, Any]]:
        dataset = task.get_dataset(
            dict(self.lengths), split=split, use_cached=self.use_cached, shuffle=False
        )
        examples = list(dataset.as_numpy_iterator())
        if not examples:
            raise _empty(task.name, split)
        if self.eval_examples is None or len(examples) <= self.eval_examples:
            return examples
        drawn = np.random.default_rng(0).permutation(len(examples))[: self.eval_examples]
        return [examples[i] for i in sorted(drawn)]

    def _check_targets(self, task: seqio.Task, texts: Iterable[str]) -> None:
        feature, most = task.output_features["targets"], self.lengths["targets"]
        for text in dict.fromkeys(texts):
            length = len(feature.vocabulary.encode(text)) + feature.add_eos
            if length > most:
                shown = text if len(text) <= 60 else text[:57] + "..."
                raise UserError(
                    f"{task.name}: the target {shown!r} has {length} tokens with its end token, "
                    f'more than the {most} of TASK_FEATURE_LENGTHS["targets"]'
                )


def _check_lengths(setting: str, lengths: Mapping[str, int]) -> None:
    sizes = [lengths.get(name) for name in FEATURES]
    if set(lengths) != set(FEATURES) or not all(type(n) is int and n > 0 for n in sizes):
        raise UserError(
            f"{setting} = {dict(lengths)}: must give positive numbers of tokens for "
            '"inputs" and "targets"'
        )


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"MIXTURE_OR_TASK_MODULE = {module!r}: cannot be imported ({error})"
        ) from error


def _check_name(task: str) -> None:
    names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if task not in names:
        close = difflib.get_close_matches(task, names, n=5)
        known = f"did you mean {', '.join(close)}?" if close else f"there are: {', '.join(names)}"
        raise UserError(f"MIXTURE_OR_TASK_NAME = {task!r}: no such task or mixture; {known}")


def _empty(task: str, split: str) -> UserError:
    return UserError(f"{task}: the split {split!r} is empty")


def _pad(ids: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Lists of at most `length` ids to [N, length] int32, padded by 0."""
    padded = np.zeros((len(ids), length), np.int32)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = values
    return padded


def _over_texts(
    metric: MetricFn, task: seqio.Task, examples: Sequence[Mapping[str, Any]]
) -> MetricFn:
    """A metric that first takes texts through the task's postprocessor, if it has one."""
    if task.postprocessor is None:
        return metric

    @functools.wraps(metric)
    def scored(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
        def processed(texts: Sequence[str], is_target: bool) -> list[Any]:
            return [
                task.postprocess_fn(text, example=example, is_target=is_target)
                for text, example in zip(texts, examples, strict=True)
            ]

        return metric(processed(targets, True), processed(predictions, False))

    return scored
