"""A SeqIO task as NumPy: the batches and evaluation sets that training and evaluation read."""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import balanced, label_words
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
    readable,
)
from prompt_tuning.data.catalogue.postprocess import group_of
from prompt_tuning.data.comparison import Comparison
from prompt_tuning.data.notes import shared_notes
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers import seqio_cache
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.data.tasks import (
    COLUMNS,
    Provider,
    RowSource,
    decode,
    fingerprint,
    hidden_splits,
    labels_of,
    parts,
    target_prefix,
    text_fields,
    text_of,
    words_of,
)
from prompt_tuning.data.unicode_form import composed, shown_beside
from prompt_tuning.errors import UserError, true_or_false, whole_number
from prompt_tuning.evaluation.notes import OF_TRAINING, cut_note, unknown_notes
from prompt_tuning.evaluation.sets import RANK_MEMORY_GIB, EvalSet

BYTES_SIZE = 3 + 0xF5  # ids of bytes begin at 3, and larger bytes do not occur in UTF-8


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
      rank_memory_gib: See `EvalSet`.
      target_prefix: Text before every target, such as a sentinel; "" for that of the task.
      balanced_classes: Whether training draws the label words of a task equally often, not as often
        as they occur.
      lengths_of_training: Whether `lengths` are those of a training, which no setting changes.
      transform: Applied to each evaluation set; None for no change.
      provider: The task or mixture itself; None to look `task` up. What is registered under its
        name later does not change this object.

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
    rank_memory_gib: float = RANK_MEMORY_GIB
    target_prefix: str = ""
    balanced_classes: bool = False
    lengths_of_training: bool = False
    transform: Callable[["TaskData", EvalSet], EvalSet] | None = None
    provider: Provider = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_lengths("TASK_FEATURE_LENGTHS", self.lengths)
        self.batching.check_bounds(self.lengths["inputs"])
        whole_number("BATCH_SIZE", self.batch_size, 1)
        whole_number("RANDOM_SEED", self.seed, 0)
        true_or_false("BALANCED_CLASSES", self.balanced_classes)
        true_or_false("USE_CACHED_TASKS", self.use_cached)
        if self.eval_examples is not None:
            whole_number("EVAL_EXAMPLES", self.eval_examples, 1)
        if self.module:
            import_tasks(self.module)
        object.__setattr__(self, "task", composed(self.task))
        if self.provider is None or self.provider.name != self.task:
            _check_name(self.task)
            object.__setattr__(self, "provider", seqio.get_mixture_or_task(self.task))
        prefixes = map(target_prefix, parts(self.provider))
        prefix = self.target_prefix or next(filter(None, prefixes), "")
        object.__setattr__(self, "target_prefix", prefix)
        for task in parts(self.provider):
            vocabulary = task.output_features["targets"].vocabulary
            label_words.check_ids(
                labels_of(task),
                vocabulary.encode,
                functools.partial(decode, vocabulary),
                "CLASS_LABELS" if task.name == "files" else f"{task.name}, label words",
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits with public targets that the task, or any task of the mixture, has."""
        tasks = seqio.get_subtasks(self.provider)
        names = {name for task in tasks for name in task.splits if name not in hidden_splits(task)}
        return tuple(sorted(names))

    @property
    def labels(self) -> tuple[str, ...]:
        """Label words of the task, or of all tasks of the mixture; empty for text to text."""
        return words_of(self.provider)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks with a split "train"; a mixed batch's `tasks` are indices into them."""
        subtasks = seqio.get_subtasks(self.provider)
        return tuple(task.name for task in subtasks if "train" in task.splits)

    @property
    def text_fields(self) -> dict[str, tuple[str, ...]]:
        """Fields that the inputs of each task of files are joined from."""
        fields = {task.name: text_fields(task) for task in parts(self.provider)}
        return {name: names for name, names in fields.items() if names}

    @property
    def bare_inputs(self) -> tuple[str, ...]:
        """Tasks whose inputs have no end token."""
        features = {task.name: task.output_features["inputs"] for task in parts(self.provider)}
        return tuple(name for name, feature in features.items() if not feature.add_eos)

    @property
    def labels_by_number(self) -> dict[str, tuple[str, ...]]:
        """Label words of each task whose files give labels as numbers, so that their order counts.

        The files are read for it.
        """
        return {
            task.name: words_of(task)
            for task in parts(self.provider)
            if _is_by_number(task, task.splits)
        }

    @functools.cached_property
    def vocabulary_fingerprint(self) -> str:
        """What cards record of the vocabulary; "" if it is neither SentencePiece's nor bytes."""
        return fingerprint(self.provider.output_features["inputs"].vocabulary)

    def as_trained(self, lengths: Mapping[str, int], target_prefix: str) -> "TaskData":
        """The data to evaluate on, with the lengths and the target prefix of a training."""
        return dataclasses.replace(
            self,
            lengths=dict(lengths),
            target_prefix=target_prefix,
            batching=Batching(),
            lengths_of_training=True,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the training batches, as JSON values by setting."""
        tokens = hashlib.sha256()
        for part in self._training_tokens:
            for array in (part.inputs, part.input_ends, part.targets, part.target_ends):
                tokens.update(array.tobytes())
        return {
            "MIXTURE_OR_TASK_NAME": self.task,
            "BATCH_SIZE": self.batch_size,
            "TASK_FEATURE_LENGTHS": dict(self.lengths),
            "BATCHING": f"{self.batching}{', BALANCED_CLASSES' if self.balanced_classes else ''}",
            "CLASS_LABELS": list(labels_of(self.provider)),
            "VOCABULARY_FILE": self.vocabulary_fingerprint,
            "RANDOM_SEED (data)": self.seed,
            "training examples": tokens.hexdigest()[:16] if self._training_tokens else "a stream",
        }

    @property
    def vocabulary_size(self) -> int:
        """Number of a vocabulary's pieces; 0 if it is neither SentencePiece's nor bytes.

        Sentinels count if targets begin with one.
        """

        def size(each: seqio.Vocabulary) -> int:
            if isinstance(each, seqio.SentencePieceVocabulary):
                return each.vocab_size - (0 if self.target_prefix else each.extra_ids)
            return BYTES_SIZE if isinstance(each, seqio.ByteVocabulary) else 0

        return max(size(feature.vocabulary) for feature in self.provider.output_features.values())

    def train_notes(self) -> list[str]:
        """Lines for the start of a run: the share of training examples that `lengths` cut, and
        warnings of what the vocabulary does not know and of rows that are in another split too.

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
                counts = {
                    name: (int(cut), len(sample), self.lengths[name])
                    for name, cut in zip(FEATURES, sample.cut, strict=True)
                }
                read = "" if self._training_tokens else f", first {len(sample):,} examples"
                where = f"{task.name}, train split{read}"
                notes.append(cut_note(where, "TASK_FEATURE_LENGTHS", counts))
                notes += _unknown(where, sample.inputs, task.output_features["inputs"])
        return [*notes, *(note for task in tasks for note in shared_notes(task))]

    def remarks(self) -> list[str]:
        """Lines for the end of a run: how many malformed rows were skipped."""
        return [line for line in (self.bad_rows.summary(),) if line]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end token."""
        features = self.provider.output_features
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
          UserError: If the task has no such split, it is empty, a target is too long or no label
            word, or
            `balanced_classes` is set for a task without label words or in memory.
        """
        if self.balanced_classes:
            _ = self._balanced  # shows its mistakes before a model is loaded
        for task in self.tasks_with("train"):
            if isinstance(task.source, RowSource):
                targets = [row.targets for row in task.source.rows("train")]
                self._check_targets(task, targets)
                if task.postprocessor is None:  # it may take further features of examples
                    Comparison(task, (), targets).check_ranked(f"{task.name}, train split")
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
            yield from self._drawn(first)
        dataset = self.provider.get_dataset(
            dict(self.lengths),
            split="train",
            use_cached=self.use_cached,
            shuffle=True,
            seed=self.seed,
            num_epochs=None,
        )
        yield from itertools.chain.from_iterable(chunks(dataset.skip(first)))
        raise _empty(self.task, "train")  # an endless stream ends only if it is empty

    def _drawn(self, first: int) -> Iterator[Example]:
        """The stream of examples in memory."""
        if not self.balanced_classes:
            yield from mixed(self._training_tokens, self._rates(), self.seed, first)
        classes, rates, task_of_class = self._balanced
        one_task = len(self._training_tokens) == 1
        for inputs, targets, *number in mixed(classes, rates, self.seed, first):
            if one_task:
                yield inputs, targets
            else:
                yield inputs, targets, task_of_class[number[0]]

    @functools.cached_property
    def _balanced(self) -> tuple[list[Tokens], list[float], list[int]]:
        """As `balanced.classes`."""
        return balanced.classes(self.tasks_with("train"), self._training_tokens, self._rates())

    def _rates(self) -> list[float]:
        """Mixing rate of each training task of a mixture."""
        provider = self.provider
        if isinstance(provider, seqio.Task):
            return [1.0]
        return [provider.get_rate(task) for task in self.tasks_with("train")]

    def eval_sets(self, split: str) -> list[EvalSet]:
        """The evaluation set of each task that has metrics and the split with public targets.

        Raises:
          UserError: If there is none, and as `eval_set`.
        """
        measured = [
            task
            for task in self.tasks_with(split)
            if task.predict_metric_fns and split not in hidden_splits(task)
        ]
        if not measured:
            raise UserError(f"{self.task}: no task with metrics has the split {split!r}")
        return [
            dataclasses.replace(self, task=task.name, provider=task).eval_set(split, measured=True)
            for task in measured
        ]

    def eval_set(self, split: str, *, measured: bool = False) -> EvalSet:
        """A split, or `eval_examples` drawn from it, in the source's order.

        Args:
          split: Name of the split.
          measured: Whether metrics will compare with its targets, so that these must be label words
            if the task has any.

        Raises:
          UserError: If the split does not exist or is empty, a target or label word is too long, a
            target is no label word, or `task` is a mixture, whose tasks have metrics of their own.
        """
        tasks = self.tasks_with(split)
        if isinstance(self.provider, seqio.Mixture):
            names = ", ".join(task.name for task in tasks)
            raise UserError(f"{self.task} is a mixture; evaluate its tasks: {names}")
        [task] = tasks
        examples, count = self._examples(task, split)
        feature = task.output_features["targets"]
        targets = [text_of(task, example, "targets") for example in examples]
        labels = words_of(task)
        self._check_targets(task, [*labels, *targets])
        is_hidden = split in hidden_splits(task)
        compare = Comparison(task, examples, targets)
        if measured:
            compare.check_ranked(f"{task.name}, {split} split")
        label_ids = [
            [*feature.vocabulary.encode(self._whole(label)), feature.vocabulary.eos_id]
            for label in labels
        ]
        inputs = [text_of(task, example, "inputs") for example in examples]
        tokens = pad_ids([example["inputs"] for example in examples], self.lengths["inputs"])
        eval_set = EvalSet(
            task=task.name,
            split=split,
            inputs=inputs,
            targets=targets,
            encoder_input_tokens=tokens,
            labels=labels,
            label_tokens=pad_ids(label_ids, self.lengths["targets"]),
            target_length=self.lengths["targets"],
            metric_fns=tuple(map(compare.by, task.predict_metric_fns)),
            decode=lambda ids: label_words.without_prefix(
                self.target_prefix, decode(feature.vocabulary, ids)
            ),
            target_prefix=self.target_prefix,
            notes=(
                *_sample_notes(f"{task.name}, {split} split", len(examples), count),
                *self._eval_notes(task, split, examples),
                *([] if is_hidden else compare.notes(f"{task.name}, {split} split")),
            ),
            rank_memory_gib=self.rank_memory_gib,
            columns=[json.loads(e[COLUMNS]) for e in examples if COLUMNS in e],
            labels_by_number=functools.partial(_is_by_number, task, (split,)),
            text_fields=text_fields(task),
            vocabulary=fingerprint(feature.vocabulary),
            tokenized=(inputs, tokens),
        )
        return self.transform(self, eval_set) if self.transform else eval_set

    def tasks_with(self, split: str) -> list[seqio.Task]:
        """The task, or the tasks of the mixture, that have a split.

        Raises:
          UserError: If there is none, or its data are neither prepared nor cached as asked.
        """
        subtasks = seqio.get_subtasks(self.provider)
        tasks = [task for task in subtasks if split in task.splits]
        if not tasks:
            available = ", ".join(self.splits)
            raise UserError(f"{self.task}: no split {split!r}; available: {available}")
        for task in tasks:
            if self.use_cached:
                seqio_cache.check(task, split)
            check_prepared(task, split, self.use_cached)
        return tasks

    def _examples(self, task: seqio.Task, split: str) -> tuple[list[dict[str, Any]], int]:
        """The examples of a split that are evaluated, and how many the split has."""
        dataset = task.get_dataset(
            dict(self.lengths), split=split, use_cached=self.use_cached, shuffle=False
        )
        examples = list(readable(dataset.as_numpy_iterator()))
        if not examples:
            raise _empty(task.name, split)
        if self.eval_examples is None or len(examples) <= self.eval_examples:
            return examples, len(examples)
        # Whole questions, so that metrics of them see all of their answers.
        groups: dict[object, list[int]] = {}
        group_of_each = [group_of(example) or i for i, example in enumerate(examples)]
        for i, group in enumerate(group_of_each):
            groups.setdefault(group, []).append(i)
        drawn = set[int]()
        for i in np.random.default_rng(0).permutation(len(examples)):
            if len(drawn) >= self.eval_examples:
                break
            drawn.update(groups[group_of_each[i]])
        return [examples[i] for i in sorted(drawn)], len(examples)

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
        where, ids = f"{task.name}, {split} split", np.concatenate([e["inputs"] for e in examples])
        counts = {"inputs": (sum(cut), len(cut), length)}
        setting = OF_TRAINING if self.lengths_of_training else "TASK_FEATURE_LENGTHS"
        note = cut_note(where, setting, counts)
        return (note, *_unknown(where, ids, feature))

    def _check_targets(self, task: seqio.Task, texts: Iterable[str]) -> None:
        feature, most = task.output_features["targets"], self.lengths["targets"]
        for text in dict.fromkeys(texts):
            whole = self._whole(text)
            length = len(feature.vocabulary.encode(whole)) + feature.add_eos
            if length > most:
                shown = whole if len(whole) <= 60 else whole[:57] + "..."
                raise UserError(
                    f"{task.name}: the target {shown!r} has {length} tokens with its end token, "
                    f'more than the {most} of TASK_FEATURE_LENGTHS["targets"]'
                )

    def _whole(self, target: str) -> str:
        """A target as the model is trained to write it."""
        return label_words.with_prefix(self.target_prefix, target)


def _unknown(where: str, ids: np.ndarray, feature: seqio.Feature) -> list[str]:
    return unknown_notes(where, int(np.sum(ids == feature.vocabulary.unk_id)), len(ids))


def _is_by_number(task: seqio.Task, splits: Iterable[str]) -> bool:
    """Whether files of these splits give labels as numbers; reads them."""
    return isinstance(task.source, RowSource) and any(
        row.by_number for split in splits for row in task.source.rows(split)
    )


def _sample_notes(where: str, taken: int, count: int) -> list[str]:
    return [f"{where}: EVAL_EXAMPLES takes {taken:,} of {count:,}"] if taken < count else []


def import_tasks(module: str) -> None:
    """Imports a module that registers tasks.

    Raises:
      UserError: If it cannot be imported.
    """
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
        shown = shown_beside(task, names)
        raise UserError(f"MIXTURE_OR_TASK_NAME = {shown}: no such task or mixture; {known}")


def _empty(task: str, split: str) -> UserError:
    return UserError(f"{task}: the split {split!r} is empty")
