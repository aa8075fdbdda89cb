"""A SeqIO task as NumPy: the batches and evaluation sets that training and evaluation read."""

import dataclasses
import difflib
import functools
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import label_words
from prompt_tuning.data.batching.bucketing import pad_ids
from prompt_tuning.data.batching.packing import Example
from prompt_tuning.data.batching.settings import FEATURES, Batching, check_lengths
from prompt_tuning.data.batching.tokens import (
    Tokens,
    chunks,
    first_chunk,
    fits,
    in_memory,
    is_longer,
    mixed,
)
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.data.tasks import RowSource, decode, hidden_splits, labels_of, parts, text_of
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import EvalSet, MetricFn

MOST_CUT = 0.01  # share of inputs or targets that are cut, above which a run warns


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A SeqIO task or mixture as arrays.

    Attributes:
      task: Name of a registered task or mixture.
      lengths: Most tokens of "inputs", which are cut to it, and "targets"; end tokens included.
      batch_size: Examples per batch, over all processes.
      seed: Seed of the order.
      module: Module that registers tasks, imported first; None for none.
      use_cached: Whether tasks that allow it are read from SeqIO's cache.
      batching: How training examples become batches.
      cache_dir: Folder that keeps the tokens of training examples for the next run; "" for none.
      eval_examples: Most examples of a split to evaluate, the same ones each time; None for all.
      bad_rows: Counter of the malformed rows of the task's files that are skipped.
      transform: Applied to each evaluation set; None for no change.

    Raises:
      UserError: For an unknown task, a module that cannot be imported, or an impossible size.
    """

    task: str
    lengths: Mapping[str, int]
    batch_size: int
    _: dataclasses.KW_ONLY
    seed: int = 0
    module: str | None = None
    use_cached: bool = False
    batching: Batching = Batching()
    cache_dir: str = ""
    eval_examples: int | None = None
    bad_rows: BadRows = dataclasses.field(default_factory=BadRows, compare=False)
    transform: Callable[["TaskData", EvalSet], EvalSet] | None = None

    def __post_init__(self) -> None:
        check_lengths("TASK_FEATURE_LENGTHS", self.lengths)
        self.batching.check_bounds(self.lengths["inputs"])
        if self.batch_size < 1:
            raise UserError(f"BATCH_SIZE = {self.batch_size}: must be positive")
        if self.eval_examples is not None and self.eval_examples < 1:
            raise UserError(f"EVAL_EXAMPLES = {self.eval_examples}: must be positive, or None")
        if self.module:
            _import(self.module)
        _check_name(self.task)
        for task in parts(self.task):
            vocabulary = task.output_features["targets"].vocabulary
            label_words.check_ids(
                labels_of(task.name),
                vocabulary.encode,
                functools.partial(decode, vocabulary),
                "CLASS_LABELS" if task.name == "files" else f"{task.name}, label words",
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits with public targets that the task, or any task of the mixture, has."""
        tasks = seqio.get_subtasks(seqio.get_mixture_or_task(self.task))
        names = {name for task in tasks for name in task.splits if name not in hidden_splits(task)}
        return tuple(sorted(names))

    @property
    def labels(self) -> tuple[str, ...]:
        """Label words of the task, or of all tasks of the mixture; empty for text to text."""
        return labels_of(self.task)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks with a split "train"; a mixed batch's `tasks` are indices into them."""
        subtasks = seqio.get_subtasks(seqio.get_mixture_or_task(self.task))
        return tuple(task.name for task in subtasks if "train" in task.splits)

    def train_notes(self) -> list[str]:
        """Lines for the start of a run: the share of training examples that `lengths` cut.

        Examples in memory are all tokenised for it, once; of a stream the first ones are read.
        Tasks that do not keep their text, as those of pre-training, have no line.

        Raises:
          UserError: As `train_batches`.
        """
        tasks = self.tasks_with("train")
        samples: Sequence[Tokens | None] = self._training_tokens or [
            first_chunk(task, "train", self.lengths, self.use_cached, self.seed) for task in tasks
        ]
        notes = []
        for task, sample in zip(tasks, samples, strict=True):
            if sample and not np.isnan(sample.cut).any():
                cut = dict(zip(FEATURES, sample.cut / len(sample), strict=True))
                read = "" if self._training_tokens else f", first {len(sample):,} examples"
                notes.append(_cut_note(f"{task.name}, train split{read}", cut, self.lengths))
        return notes

    def remarks(self) -> list[str]:
        """Lines for the end of a run: how many malformed rows were skipped."""
        return [line for line in (self.bad_rows.summary(),) if line]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end token."""
        features = seqio.get_mixture_or_task(self.task).output_features
        return features["inputs"].vocabulary.encode(text)

    def train_batches(
        self, start: int, positions: int | None = 0, multiple: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """The shuffled, endless "train" batches, from batch `start` on.

        They are the same on every process, each of whose devices is given its rows. The order
        depends on the seed alone, provided that the task's source respects it. Targets of tasks
        registered elsewhere are cut if they are too long.

        Args:
          start: Number of the first batch.
          positions: Places that the method takes in front of each packed example; None if its
            examples cannot be packed.
          multiple: Number that the rows of a batch must be a multiple of.

        Returns:
          Batches {encoder_input_tokens: [B, T], decoder_target_tokens, decoder_input_tokens,
          decoder_loss_weights: [B, L]} int32; packed ones have segments and positions, others of a
          mixture that fits in memory tasks [B]. T is a bucket's bound or the full length (plus
          `positions`).

        Raises:
          UserError: If the task has no such split, it is empty, or a target is too long.
        """
        for task in self.tasks_with("train"):
            if isinstance(task.source, RowSource):
                targets = (row.targets for row in task.source.rows("train"))
                self._check_targets(task, targets)
            elif isinstance(task.source, MemorySource):
                task.source.size("train")  # shows its mistakes before a model is loaded
        return self.batching.batches(
            self._stream,
            start,
            lengths=self.lengths,
            batch_size=self.batch_size,
            positions=positions,
            multiple=multiple,
        )

    @functools.cached_property
    def _training_tokens(self) -> list[Tokens]:
        """Tokens of each task with a split "train"; none if any is too large to hold."""
        tasks = self.tasks_with("train")
        if not all(fits(task, "train", self.use_cached) for task in tasks):
            return []
        tokens = [
            in_memory(task, "train", self.lengths, self.use_cached, self.cache_dir)
            for task in tasks
        ]
        if not all(tokens):
            raise _empty(self.task, "train")
        return [part for part in tokens if part]

    def _stream(self, first: int) -> Iterator[Example]:
        """Shuffled, endless training examples of all processes, from the `first` on."""
        if self._training_tokens:
            yield from mixed(self._training_tokens, self._rates(), self.seed, first)
        dataset = seqio.get_mixture_or_task(self.task).get_dataset(
            dict(self.lengths),
            split="train",
            use_cached=self.use_cached,
            shuffle=True,
            seed=self.seed,
            num_epochs=None,
        )
        yield from itertools.chain.from_iterable(chunks(dataset.skip(first)))
        raise _empty(self.task, "train")  # an endless stream ends only if it is empty

    def _rates(self) -> list[float]:
        """Mixing rate of each training task of a mixture."""
        provider = seqio.get_mixture_or_task(self.task)
        if isinstance(provider, seqio.Task):
            return [1.0]
        return [provider.get_rate(task) for task in self.tasks_with("train")]

    def eval_sets(self, split: str) -> list[EvalSet]:
        """The evaluation set of each task that has metrics and the split with public targets.

        Raises:
          UserError: If there is none, and as `eval_set`.
        """
        measured = [
            task.name
            for task in self.tasks_with(split)
            if task.predict_metric_fns and split not in hidden_splits(task)
        ]
        if not measured:
            raise UserError(f"{self.task}: no task with metrics has the split {split!r}")
        return [dataclasses.replace(self, task=name).eval_set(split) for name in measured]

    def eval_set(self, split: str) -> EvalSet:
        """A split, or `eval_examples` drawn from it, in the source's order.

        Raises:
          UserError: If the split does not exist or is empty, a target or label word is too long, or
            `task` is a mixture, whose tasks have metrics of their own.
        """
        tasks = self.tasks_with(split)
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
        eval_set = EvalSet(
            task=task.name,
            split=split,
            inputs=[text_of(task, example, "inputs") for example in examples],
            targets=targets,
            encoder_input_tokens=pad_ids([e["inputs"] for e in examples], self.lengths["inputs"]),
            labels=labels,
            label_tokens=pad_ids(label_ids, self.lengths["targets"]),
            target_length=self.lengths["targets"],
            metric_fns=tuple(_over_texts(fn, task, examples) for fn in task.predict_metric_fns),
            decode=functools.partial(decode, feature.vocabulary),
            notes=self._eval_notes(task, split, examples),
        )
        return self.transform(self, eval_set) if self.transform else eval_set

    def tasks_with(self, split: str) -> list[seqio.Task]:
        """The task, or the tasks of the mixture, that have a split.

        Raises:
          UserError: If there is none, or its data are neither prepared nor cached as asked.
        """
        subtasks = seqio.get_subtasks(seqio.get_mixture_or_task(self.task))
        tasks = [task for task in subtasks if split in task.splits]
        if not tasks:
            available = ", ".join(self.splits)
            raise UserError(f"{self.task}: no split {split!r}; available: {available}")
        for task in tasks:
            if self.use_cached and task.supports_caching and not task.cache_dir:
                raise UserError(f"{task.name}: is not cached; set USE_CACHED_TASKS = False")
            check_prepared(task, split, self.use_cached)
        return tasks

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

    def _eval_notes(
        self, task: seqio.Task, split: str, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[str, ...]:
        if not isinstance(examples[0].get("inputs_pretokenized"), bytes):
            return ()
        feature, length = task.output_features["inputs"], self.lengths["inputs"]
        cut = [
            len(example["inputs"]) >= length
            and is_longer(example["inputs_pretokenized"].decode(), feature, length)
            for example in examples
        ]
        share = float(np.mean(cut))
        return (_cut_note(f"{task.name}, {split} split", {"inputs": share}, self.lengths),)

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


def _cut_note(where: str, cut: Mapping[str, float], lengths: Mapping[str, int]) -> str:
    """A line on the shares of inputs, and of targets, that are cut."""
    shares = " and ".join(
        f"{100 * share:.3g} % of the {name} to {lengths[name]} tokens"
        for name, share in cut.items()
    )
    line = f"{where}: TASK_FEATURE_LENGTHS cuts {shares}"
    if max(cut.values()) <= MOST_CUT:
        return line
    return f"warning: {line}; raise the length to keep whole texts"


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
        known = f"did you mean {', '.join(close)}?" if close else f"available: {', '.join(names)}"
        raise UserError(f"MIXTURE_OR_TASK_NAME = {task!r}: no such task or mixture; {known}")


def _empty(task: str, split: str) -> UserError:
    return UserError(f"{task}: the split {split!r} is empty")


def _over_texts(
    metric: MetricFn, task: seqio.Task, examples: Sequence[Mapping[str, Any]]
) -> MetricFn:
    """Makes a metric apply the task's postprocessor, if it has one, to texts first."""
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
