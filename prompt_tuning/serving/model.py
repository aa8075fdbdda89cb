"""One frozen backbone and the prompts of many tasks: a batch mixes rows of different tasks."""

import functools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from etils import epath
from jax import Array

from prompt_tuning import embedded, sharding
from prompt_tuning.checkpoint import card, fingerprint, trained_data
from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.data import label_words
from prompt_tuning.data.unicode_form import composed
from prompt_tuning.decoding import (
    RANK_MEMORY_GIB,
    Sampling,
    batches,
    rank_bytes,
    sampling_arrays,
)
from prompt_tuning.decoding.batches import Executable, Function, Programs, Search, power
from prompt_tuning.errors import MOST_TOKENS, UserError, real_number, true_or_false, whole_number
from prompt_tuning.families import check_target_prefix, preset
from prompt_tuning.methods.base import Method
from prompt_tuning.model.tuned import initialize
from prompt_tuning.serving import arguments, bank, prompt_folder
from prompt_tuning.serving.answers import Classification, Generation
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.serving.task_set import Tasks, TaskSet, checked_labels, checked_texts
from prompt_tuning.serving.texts import encoded, warn
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import Params, flatten
from prompt_tuning.transformer.vocabulary import EOS, Vocabulary, check_ids, check_size, with_pieces
from prompt_tuning.transformer.vocabulary import read as read_vocabulary

MAX_TOKENS = 32
MOST_ALPHA = 4  # the search stops too early below 0, and scores overflow far above
INPUT_LENGTH = 512


class Model:
    """A frozen backbone in memory with the prompts of any number of tasks; made by `load`.

    Inputs are padded to powers of two, and each such shape is compiled once. Adding, replacing and
    removing tasks compiles nothing while they fit into the bank. Threads may share a model, but it
    is neither pickled nor used after a fork.

    Attributes:
      config: Shape of the backbone.
      input_length: Number of tokens, including the end token, to which an input is cut, unless the
        card of its task's prompt has a number.
      vocabulary: Converts texts to token ids and back.
      allow_other_backbone: Whether the card of a prompt may name another backbone.
      rank_bytes: Bound of memory in which labels are scored, see `decoding.rank_bytes`.
    """

    def __init__(
        self,
        config: Config,
        backbone: Params,
        vocabulary: Vocabulary,
        layout: Layout,
        *,
        batch_size: int = 64,
        input_length: int | None = None,
        prompts: PromptBank | None = None,
        allow_other_backbone: bool = False,
        rank_memory_gib: float = RANK_MEMORY_GIB,
        sums: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Serves leaves of `families.model(config)` that are placed on `layout`.

        Args:
          config, vocabulary, batch_size, input_length, allow_other_backbone, rank_memory_gib: As in
            `load`.
          backbone: Leaves of the backbone.
          layout: Devices that the leaves are on.
          prompts: Bank to start with; None for an empty one.
          sums: Checksums of leaves whose stored values are not in memory, see `TunedModel`.
        """
        vocabulary = with_pieces(vocabulary)
        if [*vocabulary.encode("")] == [EOS]:
            raise UserError(
                "vocabulary: its encode ends with the end token, which is added to texts here; "
                "give one that encodes text alone"
            )
        check_size(getattr(vocabulary, "size", 0), config.vocab_size)
        self.config, self.input_length = config, INPUT_LENGTH
        self._width, self._longest_input = config.stack("encoder").width, None
        if input_length is not None:
            self.input_length = whole_number("input_length", input_length, 1, MOST_TOKENS)
            self._longest_input = self.input_length
        self._process = os.getpid()
        self.vocabulary, self._sums = vocabulary, sums or {}
        self.allow_other_backbone = true_or_false("allow_other_backbone", allow_other_backbone)
        self.rank_bytes = rank_bytes(rank_memory_gib, layout.row_shards)
        self._programs, self._lock = Programs(layout, batch_size), threading.Lock()
        start = prompts or PromptBank.empty(config.stack("encoder").width, layout.mesh)
        self._task_set = TaskSet(config, backbone, start, dict.fromkeys(start.slots, ()))

    def __repr__(self) -> str:
        encoder, decoder = (self.config.stack(name) for name in ("encoder", "decoder"))
        names = ", ".join(self._task_set.bank.slots) or "none"
        count = sum(np.prod(leaf.shape) for leaf in flatten(self._task_set.backbone).values())
        shown = names if len(names) <= 200 else f"{names[:197]}..."
        return (
            f"Model({count:,} parameters, {encoder.layers}+{decoder.layers} layers "
            f"of {encoder.width}; tasks: {shown})"
        )

    @property
    def task_set(self) -> TaskSet:
        """An immutable snapshot of the tasks that are served now.

        Raises:
          UserError: in another process than the one that made the model.
        """
        if os.getpid() != self._process:
            raise UserError(
                f"this Model is of process {self._process} and cannot be used after a fork: load "
                "it in each process, and start processes by spawn"
            )
        return self._task_set

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Model cannot be pickled or copied: load it in each process")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order in which they were added."""
        return tuple(self.task_set.bank.slots)

    @property
    def compile_count(self) -> int:
        """Number of programs compiled so far."""
        return self._programs.compiled

    @functools.cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the backbone, which the card of a prompt names."""
        return fingerprint.of(self.task_set.backbone, self._sums)

    def labels(self, task: str) -> tuple[str, ...]:
        """Label words of a task; empty for a task that generates text."""
        task_set = self.task_set
        return task_set.labels[task_set.known(task)]

    def prompts(self, task: str) -> list[np.ndarray]:
        """Prompts [P, D] of a task."""
        task_set = self.task_set
        return task_set.bank.prompts_of(task_set.known(task))

    def add_task(
        self,
        name: str,
        prompt: Any,
        labels: Sequence[str] = (),
        *,
        target_prefix: str | None = None,
        trained_with: TrainedWith | None = None,
        replace: bool = False,
    ) -> None:
        """Adds a task for the calls that begin afterwards.

        Inputs are cut to the length with which the prompt was trained, if its card says so.

        Args:
          name: Name of the task, by which calls ask for it in any Unicode form.
          prompt: Array [P, D] or path (`.npy`, `.safetensors`, folder of an adapter); None for the
            backbone alone; a list of these for an ensemble.
          labels: Label words to choose from, for a classification task.
          target_prefix: Text before every target in training, such as a sentinel, which is not part
            of answers; None for what the card says.
          trained_with: What the card of an array says; None without one.
          replace: Whether to replace a task of this name.

        Raises:
          UserError, CheckpointError: if the task already exists, or the prompt is not finite, has
            another width, or was trained on another backbone, on longer inputs than this model
            takes, or not as a prefix. The model is then unchanged.
        """
        name = composed(name)
        parts = prompt if isinstance(prompt, list | tuple) else [prompt]
        arrays = {name: [self._prompt_array(part) for part in parts]}
        words = {name: checked_labels(name, labels, self.vocabulary)}
        trained_with = self._trained_with(name, parts, target_prefix, trained_with)
        trained_data.warn_of_untrained(words[name], trained_with.labels, f"task {name!r}")
        self._add(arrays, words, {name: trained_with}, replace=replace)

    def add_tasks(self, folder: epath.PathLike) -> tuple[str, ...]:
        """Adds all tasks of a folder of prompts, or none if one is refused; returns their names.

        The files are those of `prompt_folder.files`, the label words those of
        `prompt_folder.labels`.
        """
        files, labels = prompt_folder.files(folder), prompt_folder.labels(folder)
        words = {
            task: checked_labels(task, labels.get(task, ()), self.vocabulary) for task in files
        }
        arrays = {
            task: [self._prompt_array(path) for path in paths] for task, paths in files.items()
        }
        trained_with = {task: self._trained_with(task, paths) for task, paths in files.items()}
        for task, training in trained_with.items():
            trained_data.warn_of_untrained(words[task], training.labels, f"task {task!r}")
        self._add(arrays, words, trained_with)
        return tuple(files)

    def remove_task(self, name: str) -> None:
        """Removes a task; calls that have begun still see it.

        Raises:
          UserError: if there is no such task.
        """
        with self._lock:
            self._task_set = self.task_set.remove(name)

    def __call__(self, texts: Sequence[str], task: Tasks) -> list[str]:
        """Answers each text with a label if its task has labels, otherwise with generated text.

        Args:
          texts: Any number of texts: a list, an array, a `pandas.Series` or another sequence, whose
            texts are taken by position.
          task: One task for all texts, or one for each.

        >>> import prompt_tuning
        >>> model = prompt_tuning.load("demo")
        >>> model.add_task("mood", prompt=None, labels=["negative", "positive"])
        >>> model(["sentiment: a dull film", "sentiment: a great film"], task="mood")
        ['negative', 'positive']
        """
        task_set, texts, names = self._snapshot(texts, task)
        answers: dict[int, str] = {}
        for has_labels, verb in ((True, self._classify), (False, self._generate)):
            rows = [i for i, name in enumerate(names) if bool(task_set.labels[name]) == has_labels]
            part = verb(task_set, [texts[i] for i in rows], [names[i] for i in rows])
            answers |= zip(rows, map(str, part), strict=True)
        return [answers[i] for i in range(len(names))]

    def classify(self, texts: Sequence[str], task: Tasks) -> list[Classification]:
        """Chooses each text's label, with probabilities; encodes a text once for all labels.

        Args:
          texts, task: As in a call; every task has labels.

        Raises:
          UserError: if a task is unknown or has no labels.
        """
        return self._classify(*self._snapshot(texts, task))

    def generate(
        self,
        texts: Sequence[str],
        task: Tasks,
        *,
        max_tokens: int | Sequence[int] | None = None,
        stop: Sequence[int] = (),
        sampling: Sampling | Sequence[Sampling | None] | None = None,
        seed: int | Sequence[int] = 0,
        beams: int = 1,
        alpha: float = 0.6,
    ) -> list[Generation]:
        """Generates a text for each text.

        Args:
          texts, task: As in a call.
          max_tokens: Maximum number of tokens, one for all texts or one for each. None for the
            target length that the task's prompts were trained with; `MAX_TOKENS` without a card.
          stop: Ids of tokens that end a text, besides the end token.
          sampling: Settings of sampling, one for all texts or one for each; None for the most
            likely token at each step.
          seed: Seed of the samples, from 0 to 2^32 - 1. One for all texts: the sample of text i
            depends on the seed and i. One for each: the sample of a text is that of a call with
            this text and seed alone. Neither depends on the other texts.
          beams: Number of beams; 1 for no beam search.
          alpha: Exponent of beam search's length penalty, from 0 to 4.

        Raises:
          UserError: if a task is unknown or a setting is out of its range.
        """
        task_set, texts, names = self._snapshot(texts, task)
        samplings = arguments.for_each("sampling", sampling, len(texts))
        for each in samplings:
            if not isinstance(each, Sampling | None):
                raise UserError(f"sampling = {each!r}: must be a Sampling or None")
        beams = whole_number("beams", beams, 1, self.config.vocab_size)
        if beams > 1 and any(each is not None for each in samplings):
            raise UserError(f"beams = {beams}: must be 1 with sampling")
        if not 0 <= (alpha := real_number("alpha", alpha)) <= MOST_ALPHA:
            raise UserError(f"alpha = {alpha:g}: must be a number from 0 to {MOST_ALPHA}")
        return self._generate(
            task_set, texts, names, max_tokens, stop, samplings, seed, beams, alpha
        )

    def embed(self, texts: Sequence[str], task: Tasks) -> np.ndarray:
        """The encoder's mean state over each text's tokens, [N, D] float32.

        For an ensemble it is the mean over the prompts.
        """
        states = self._map(*self._snapshot(texts, task), batches.embed, None)
        means = [by_prompt.mean(axis=0) for (by_prompt,) in states]
        return np.array(means).reshape(-1, self._width)

    def executable(
        self, function: Function, settings: Any, longest: int, *inputs: np.ndarray
    ) -> Executable:
        """Compiles a function of `decoding.batches` ahead of time, for a scheduler of batches.

        Args:
          function, settings: See `batches.Function`.
          longest: Length of the longest prompt of a batch.
          *inputs: Tokens [B, T], slots [B] and further arrays [B, ...] of the function; their
            shapes count.

        Returns:
          A function of `task_set.params` and such inputs; it compiles nothing while the bank has
          the room that it has now.
        """
        task_set = self.task_set
        model = task_set.model(longest)
        return self._programs.executable(function, settings, model, task_set.params, *inputs)

    def _snapshot(
        self, texts: Sequence[str], task: Tasks
    ) -> tuple[TaskSet, Sequence[str], list[str]]:
        """The tasks served now, the texts, and the task of each."""
        task_set, texts = self.task_set, checked_texts(texts)
        return task_set, texts, task_set.task_of_each(texts, task)

    def _classify(
        self, task_set: TaskSet, texts: Sequence[str], names: Sequence[str]
    ) -> list[Classification]:
        labels = {name: task_set.labels[name] for name in names}
        if unlabelled := [name for name, words in labels.items() if not words]:
            raise UserError(
                f"task {unlabelled[0]!r}: has no labels; add it with labels, or use generate"
            )
        prefixes = {name: task_set.prefix(name) for name in labels}
        targets = arguments.label_targets(labels, prefixes, self.vocabulary.encode)
        rows = np.array([targets[name] for name in names])
        check_ids(rows, self.config.vocab_size)
        scores = self._map(task_set, texts, names, batches.classify, self.rank_bytes, rows)
        return [
            Classification.of(labels[name], by_prompt[:, : len(labels[name])])
            for name, (by_prompt,) in zip(names, scores, strict=True)
        ]

    def _generate(
        self,
        task_set: TaskSet,
        texts: Sequence[str],
        names: Sequence[str],
        max_tokens: int | Sequence[int] | None = None,
        stop: Sequence[int] = (),
        samplings: Sequence[Sampling | None] | None = None,
        seed: int | Sequence[int] = 0,
        beams: int = 1,
        alpha: float = 0.6,
    ) -> list[Generation]:
        if max_tokens is None:
            max_tokens = [task_set.output_length(name, MAX_TOKENS) for name in names]
        limits = [
            whole_number("max_tokens", limit, 1, MOST_TOKENS)
            for limit in arguments.for_each("max_tokens", max_tokens, len(texts))
        ]
        if isinstance(stop, str) or not arguments.is_sequence(stop):
            raise UserError(f"stop = {stop!r}: must be a list of ids of tokens")
        stop = [
            whole_number(f"stop[{i}]", token, 0, self.config.vocab_size - 1)
            for i, token in enumerate(stop)
        ]
        prefixes = [task_set.prefix(name) for name in names]
        encode, decode = self.vocabulary.encode, self.vocabulary.decode
        limits = [
            limit + (len(encode(prefix)) if prefix else 0)
            for limit, prefix in zip(limits, prefixes, strict=True)
        ]
        search = Search(power(max(limits, default=1)), beams)
        # Padded with the end token, so that few numbers of stop tokens are compiled.
        stops = [EOS, *stop, *[EOS] * (power(len(stop) + 1, 4) - len(stop) - 1)]
        arrays = (
            np.array(limits, np.int32),
            np.tile(np.array(stops, np.int32), (len(texts), 1)),
            np.full(len(texts), alpha, np.float32),
            arguments.seeds_and_numbers(seed, len(texts)),
            *sampling_arrays(samplings or [None] * len(texts)),
            np.zeros(len(texts), bool),
        )
        decoded = self._map(task_set, texts, names, batches.generate, search, *arrays)
        return [
            Generation.of(
                [label_words.without_prefix(prefix, decode(row.tolist())) for row in tokens],
                scores,
                tokens,
                log_p,
            )
            for (tokens, scores, log_p, *_), prefix in zip(decoded, prefixes, strict=True)
        ]

    def _map(
        self,
        task_set: TaskSet,
        texts: Sequence[str],
        names: Sequence[str],
        function: Function,
        settings: Any,
        *arrays: np.ndarray,
    ) -> list[tuple[np.ndarray, ...]]:
        """Applies a function of `decoding.batches` to each text with every prompt of its task.

        Args:
          task_set, texts, names: From `_snapshot`.
          function, settings: See `batches.Function`.
          *arrays: Further arguments of the function, [texts, ...].

        Returns:
          For each text the function's arrays, with one row per prompt.
        """
        if not texts:
            return []
        slots = [task_set.bank.slots[name] for name in names]
        counts = [len(text_slots) for text_slots in slots]
        text_of_row = np.repeat(np.arange(len(texts)), counts)
        lengths = {name: task_set.input_length(name, self.input_length) for name in {*names}}
        inputs = [
            encoded(self.vocabulary, text, lengths[name])
            for text, name in zip(texts, names, strict=True)
        ]
        warn(inputs)
        ids = [each.ids for each in inputs]
        check_ids(np.concatenate(ids), self.config.vocab_size)
        all_slots = np.concatenate(slots).astype(np.int32)
        sizes = task_set.bank.sizes[all_slots]
        groups = np.array([bank.group(size) for size in sizes.tolist()])
        parts, rows_of_parts = [], []
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            part = self._programs.map(
                function,
                settings,
                task_set.model(int(sizes[rows].max())),
                task_set.params,
                [ids[text] for text in text_of_row[rows]],
                all_slots[rows],
                *(array[text_of_row[rows]] for array in arrays),
            )
            parts.append(part)
            rows_of_parts.append(rows)
        back, ends = np.argsort(np.concatenate(rows_of_parts)), np.cumsum(counts)[:-1]
        results = (np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True))
        return list(zip(*(np.split(result, ends) for result in results), strict=True))

    def _prompt_array(self, prompt: Any) -> np.ndarray:
        if prompt is None:
            return np.zeros((0, self._width), np.float32)
        if isinstance(prompt, np.ndarray | Array):
            if not prompt.size:
                raise UserError(
                    f"a prompt of the shape {prompt.shape}: must have a vector; give None for the "
                    "backbone alone"
                )
            if np.ma.isMaskedArray(prompt):
                raise UserError("a prompt that is a masked array: give its filled() values")
            return np.array(prompt)  # a copy: the caller may fill it anew
        if not isinstance(prompt, str | os.PathLike):
            raise UserError(
                f"a prompt of type {type(prompt).__name__}: must be a NumPy or JAX array [P, D], a "
                "path, None, or a list of these"
            )
        fingerprint_of_backbone = None if self.allow_other_backbone else lambda: self.fingerprint
        return prompt_folder.read(prompt, fingerprint_of_backbone)

    def check_input_length(self, training: TrainedWith, what: str) -> None:
        """Checks that inputs are not cut to fewer tokens than a prompt was trained on.

        Raises:
          UserError: if they are; the message begins with `what`.
        """
        length, longest = training.lengths.get("inputs", 0), self._longest_input
        if longest is not None and length > longest:
            raise UserError(
                f"{what}: its prompt was trained on inputs of {length} tokens, but inputs are cut "
                f"to {longest} here; set the input length (INPUT_LENGTH) to {length}"
            )

    def _trained_with(
        self,
        task: str,
        prompts: Sequence[Any],
        target_prefix: str | None = None,
        training: TrainedWith | None = None,
    ) -> TrainedWith:
        """What the cards of a task's prompts say, which is checked against this model."""
        if target_prefix is not None and not isinstance(target_prefix, str):
            raise UserError(
                f"task {task!r}: target_prefix is {target_prefix!r}; must be a text or None"
            )
        takes_sentinel = target_prefix is not None
        of_cards = prompt_folder.trained_with(
            prompts, f"task {task!r}", takes_sentinel=takes_sentinel
        )
        training = training or of_cards
        if training is None:
            training = TrainedWith(target_prefix=target_prefix or "")
        if not self.allow_other_backbone:
            vocabulary = getattr(self.vocabulary, "fingerprint", "")
            card.check_model(
                training, f"task {task!r}", vocabulary=vocabulary, model=self.config.of_model
            )
        trained_data.check_inputs_end((), training.bare_inputs, f"task {task!r}")
        check_target_prefix(self.config, training.target_prefix)
        self.check_input_length(training, f"task {task!r}")
        if target_prefix not in (None, training.target_prefix):
            raise UserError(
                f"task {task!r}: target_prefix is {target_prefix!r}, but its prompt was trained "
                f"with {training.target_prefix!r}; leave it out"
            )
        return training

    def _add(
        self,
        prompts: Mapping[str, Sequence[np.ndarray]],
        labels: Mapping[str, tuple[str, ...]],
        trained_with: Mapping[str, TrainedWith],
        *,
        replace: bool = False,
    ) -> None:
        with self._lock:
            self._task_set = self.task_set.add(prompts, labels, trained_with, replace=replace)


def load(
    config: str | Config,
    checkpoint: epath.PathLike | None = None,
    vocabulary: epath.PathLike | Vocabulary | None = None,
    *,
    layout: Layout | None = None,
    batch_size: int = 64,
    input_length: int | None = None,
    tasks: int = 8,
    prompt_length: int = 0,
    shard_prompts: str | None = None,
    allow_other_backbone: bool = False,
    rank_memory_gib: float = RANK_MEMORY_GIB,
) -> Model:
    """Loads a backbone to serve prompts with.

    Args:
      config: Name of a preset ("demo" needs no files), the shape of a backbone, or a Hugging Face
        folder, which has all three.
      checkpoint: Weights, see `checkpoint.backbone.load`.
      vocabulary: Path of a SentencePiece model or of a Hugging Face folder, "bytes" for ByT5's, or
        an object that encodes and decodes.
      layout: Devices, from `sharding.layout`; None to divide rows over all devices.
      batch_size: Most rows of a batch.
      input_length: Number of tokens, including the end token, to which an input is cut, unless the
        card of its task's prompt says fewer; prompts trained on longer inputs are refused. None
        for the card's number, or 512 without a card.
      tasks: Number of prompts that there is room for at the start; it doubles when more are added,
        and batches are then compiled again.
      prompt_length: Length of the prompts that there is room for at the start; it grows to the
        longest prompt, and batches are then compiled again.
      shard_prompts: Mesh axis, "data" or "model", that the prompts are divided over; None to keep
        all of them on each device.
      allow_other_backbone: Whether to accept prompts whose card names another backbone.
      rank_memory_gib: Memory in which the labels of a batch are scored together, on each device
        that rows are on; more labels are scored in parts.

    Raises:
      ValueError: if something is missing or does not fit; the message names it.

    >>> import prompt_tuning
    >>> prompt_tuning.load("demo")
    Model(8,655,104 parameters, 4+2 layers of 256; tasks: none)
    """
    if config == "demo":
        checkpoint = checkpoint or embedded.backbone()
        vocabulary = vocabulary or embedded.vocabulary()
    elif isinstance(config, str) and checkpoint is None and epath.Path(config).is_dir():
        checkpoint = config
        vocabulary = vocabulary or config
    if checkpoint is None or vocabulary is None:
        missing = "checkpoint" if checkpoint is None else "vocabulary"
        raise UserError(f"load({config!r}): has no {missing}; pass the path of its file")
    shape = preset(config) if isinstance(config, str) else config
    tuned = initialize(shape, Method(), layout=layout or sharding.layout(), checkpoint=checkpoint)
    width, mesh = shape.stack("encoder").width, tuned.layout.mesh
    room = {"capacity": tasks, "length": prompt_length}
    return Model(
        shape,
        tuned.frozen,
        vocabulary if isinstance(vocabulary, Vocabulary) else read_vocabulary(vocabulary),
        tuned.layout,
        batch_size=batch_size,
        input_length=input_length,
        prompts=PromptBank.empty(width, mesh, **room, axis=shard_prompts),
        allow_other_backbone=allow_other_backbone,
        rank_memory_gib=rank_memory_gib,
        sums=tuned.sums,
    )
