"""One frozen backbone, prompts of many tasks: batches whose rows are of different tasks."""

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax import Array

from prompt_tuning import embedded, sharding
from prompt_tuning.checkpoint import fingerprint
from prompt_tuning.decoding import Sampling, batches
from prompt_tuning.decoding.batches import Batches, Function, Search, power
from prompt_tuning.errors import UserError
from prompt_tuning.methods.base import Method
from prompt_tuning.model.tuned import initialize
from prompt_tuning.serving import prompt_folder
from prompt_tuning.serving.answers import Classification, Generation
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.serving.task_set import _Served, _words
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import T5Config, preset
from prompt_tuning.t5.network import T5
from prompt_tuning.t5.paths import Params, flatten, join
from prompt_tuning.t5.vocabulary import EOS, Vocabulary
from prompt_tuning.t5.vocabulary import read as read_vocabulary

MAX_TOKENS = 32

Tasks = str | Sequence[str]


class Model:
    """A frozen backbone in memory, with the prompts of any number of tasks; made by `load`.

    Inputs are padded to powers of two, and each such shape is compiled once. Tasks that come,
    change or go compile nothing while they fit the bank's room. Several threads may call.

    Attributes:
      config: the backbone's shape.
      input_length: tokens, with the end token, to which an input is cut.
    """

    def __init__(
        self,
        config: T5Config,
        backbone: Params,
        vocabulary: Vocabulary,
        layout: Layout,
        *,
        batch_size: int = 64,
        input_length: int = 512,
        prompts: PromptBank | None = None,
        allow_other_backbone: bool = False,
        sums: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """As `load`, of leaves of `T5(config)` on `layout`; `sums` as `TunedModel` has them."""
        self.config, self.input_length = config, input_length
        self._backbone, self._sums, self._vocabulary = backbone, sums or {}, vocabulary
        self._any_backbone = allow_other_backbone
        self._batches, self._changing = Batches(layout, batch_size), threading.Lock()
        self._served = self._with(prompts or PromptBank.empty(config.d_model, layout.mesh), {})

    def __repr__(self) -> str:
        cfg, names = self.config, ", ".join(self.tasks) or "none"
        count = sum(np.prod(leaf.shape) for leaf in flatten(self._backbone).values())
        shown = names if len(names) <= 200 else f"{names[:197]}..."
        return (
            f"Model({count:,} parameters, {cfg.num_encoder_layers}+{cfg.num_decoder_layers} layers "
            f"of {cfg.d_model}; tasks: {shown})"
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were added."""
        return tuple(self._served.bank.slots)

    @property
    def compile_count(self) -> int:
        """How many programs were compiled for batches."""
        return self._batches.compiled

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the backbone; a prompt's card names it."""
        return fingerprint.of(self._backbone, self._sums)

    def labels(self, task: str) -> tuple[str, ...]:
        """The label words of a task; none where it makes text."""
        self._served.check(task)
        return self._served.labels[task]

    def prompts(self, task: str) -> list[np.ndarray]:
        """The prompts [P, D] of a task."""
        self._served.check(task)
        return self._served.bank.prompts_of(task)

    def add_task(
        self, name: str, prompt: Any, labels: Sequence[str] = (), *, replace: bool = False
    ) -> None:
        """Adds a task; it is there for calls that begin afterwards.

        Args:
          name: what calls name it by.
          prompt: an array [P, D], or a path (`.npy`, `.safetensors`, an adapter's folder); None for
            the backbone alone; a list of several for an ensemble.
          labels: the words to choose from, if it is classification.
          replace: take the place of the task of this name.

        Raises:
          UserError, CheckpointError: if there is such a task already, or the prompt is not finite,
            has another width or was trained on another backbone. Nothing has changed then.
        """
        several = prompt if isinstance(prompt, list | tuple) else [prompt]
        arrays = {name: [self._array(one) for one in several]}
        self._add(arrays, {name: _words(name, labels)}, replace)

    def add_tasks(self, folder: epath.PathLike) -> tuple[str, ...]:
        """Adds the tasks of a folder of prompts (`bank.files`, `bank.labels`), all or none, and
        returns their names.
        """
        found, labels = prompt_folder.files(folder), prompt_folder.labels(folder)
        words = {task: _words(task, labels.get(task, ())) for task in found}
        arrays = {task: [self._array(path) for path in paths] for task, paths in found.items()}
        self._add(arrays, words, replace=False)
        return tuple(found)

    def remove_task(self, name: str) -> None:
        """Removes a task; calls that have begun still see it.

        Raises:
          UserError: if there is no such task.
        """
        with self._changing:
            now = self._served
            labels = {task: words for task, words in now.labels.items() if task != name}
            self._served = self._with(now.bank.remove(name), labels)

    def __call__(self, texts: Sequence[str], task: Tasks) -> list[str]:
        """The label of each text whose task has labels, a generated text for the others.

        Args:
          texts, task: any number, and the task of all or of each.

        >>> import prompt_tuning
        >>> model = prompt_tuning.load("demo")
        >>> model.add_task("mood", prompt=None, labels=["negative", "positive"])
        >>> model(["sentiment: a dull film", "sentiment: a great film"], task="mood")
        ['negative', 'positive']
        """
        served, names = self._asked(texts, task)
        answers: dict[int, str] = {}
        for has_labels, method in ((True, self._classify), (False, self._generate)):
            rows = [i for i, name in enumerate(names) if bool(served.labels[name]) == has_labels]
            found = method(served, [texts[i] for i in rows], [names[i] for i in rows])
            answers |= zip(rows, map(str, found), strict=True)
        return [answers[i] for i in range(len(names))]

    def classify(self, texts: Sequence[str], task: Tasks) -> list[Classification]:
        """The label of each text, with probabilities; each text is encoded once for all labels.

        Args:
          texts, task: as of a call; every task has labels.

        Raises:
          UserError: for a task that is unknown or has no labels.
        """
        served, names = self._asked(texts, task)
        return self._classify(served, texts, names)

    def generate(
        self,
        texts: Sequence[str],
        task: Tasks,
        *,
        max_tokens: int | Sequence[int] = MAX_TOKENS,
        stop: Sequence[int] = (),
        sampling: Sampling | None = None,
        seed: int = 0,
        beams: int = 1,
        alpha: float = 0.6,
    ) -> list[Generation]:
        """Makes a text for each text.

        Args:
          texts, task: as of a call.
          max_tokens: for all, or one for each.
          stop: ids of tokens that end a text, beside the end token.
          sampling: how tokens are drawn; None for the most likely ones.
          seed: of the draws; those of a text do not hang on the texts beside it.
          beams: of beam search, if more than 1.
          alpha: its length penalty.

        Raises:
          UserError: for a task that is unknown, or a setting out of its range.
        """
        if beams < 1 or (sampling is not None and beams > 1):
            raise UserError(f"beams = {beams}: must be 1 or more, and 1 where tokens are drawn")
        search = Search(0, sampling, beams, alpha)
        served, names = self._asked(texts, task)
        return self._generate(served, texts, names, max_tokens, stop, search, seed)

    def embed(self, texts: Sequence[str], task: Tasks) -> np.ndarray:
        """The encoder's mean state over each text's tokens, [N, D] float32; of an ensemble the mean
        over its prompts.
        """
        served, names = self._asked(texts, task)
        states = self._map(served, batches.embed, None, texts, names)
        return np.array([own[0].mean(axis=0) for own in states]).reshape(-1, self.config.d_model)

    def _classify(
        self, served: _Served, texts: Sequence[str], names: Sequence[str]
    ) -> list[Classification]:
        if without := [name for name in names if not served.labels[name]]:
            raise UserError(f"task {without[0]!r}: has no labels; add it with labels, or generate")
        targets = self._targets({name: served.labels[name] for name in names})
        rows = np.array([targets[name] for name in names])
        scores = self._map(served, batches.classify, None, texts, names, rows)
        return [
            Classification.of(labels, own[:, : len(labels)])
            for labels, (own,) in zip((served.labels[name] for name in names), scores, strict=True)
        ]

    def _generate(
        self,
        served: _Served,
        texts: Sequence[str],
        names: Sequence[str],
        max_tokens: int | Sequence[int] = MAX_TOKENS,
        stop: Sequence[int] = (),
        search: Search = Search(0),
        seed: int = 0,
    ) -> list[Generation]:
        limits: list[Any] = [max_tokens] * len(texts)
        if isinstance(max_tokens, Sequence | np.ndarray):
            limits = list(max_tokens)
        whole = all(isinstance(limit, int | np.integer) and limit > 0 for limit in limits)
        if len(limits) != len(texts) or not whole:
            raise UserError(f"max_tokens = {max_tokens}: a number from 1, or one for each text")
        if odd := [t for t in stop if t not in range(self.config.vocab_size)]:
            raise UserError(f"stop holds {odd[0]!r}: give ids of tokens")
        search = dataclasses.replace(search, length=power(max(limits, default=1)))
        stops = np.tile(np.array([EOS, *stop], np.int32), (len(texts), 1))
        keys = np.array([(seed, i) for i in range(len(texts))], np.uint32)
        ends = np.array(limits, np.int32), stops
        found = self._map(served, batches.generate, search, texts, names, *ends, keys)
        decode = self._vocabulary.decode
        return [Generation.of([decode(row.tolist()) for row in own], p) for own, p in found]

    def _map(
        self,
        served: _Served,
        function: Function,
        settings: Any,
        texts: Sequence[str],
        names: Sequence[str],
        *arguments: np.ndarray,
    ) -> list[tuple[np.ndarray, ...]]:
        """What a function of `batched` returns for each text, an array's row a prompt."""
        if not texts:
            return []
        slots = [served.bank.slots[name] for name in names]
        rows = np.repeat(np.arange(len(texts)), [len(several) for several in slots])
        ids = [[*self._vocabulary.encode(text)[: self.input_length - 1], EOS] for text in texts]
        found = self._batches.map(
            function,
            settings,
            served.model,
            served.params,
            [ids[row] for row in rows],
            [slot for several in slots for slot in several],
            *(argument[rows] for argument in arguments),
        )
        ends = np.cumsum([len(several) for several in slots])[:-1]
        return list(zip(*(np.split(array, ends) for array in found), strict=True))

    def _targets(self, labels: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Each task's labels as tokens [K, L], of one shape for all; rows of 0 fill up."""
        encode = self._vocabulary.encode
        ids = {task: [[*encode(word), EOS] for word in words] for task, words in labels.items()}
        longest = max((len(word) for words in ids.values() for word in words), default=1)
        shape = power(max(map(len, ids.values()), default=1)), power(longest)
        targets = {task: np.zeros(shape, np.int32) for task in ids}
        for task, words in ids.items():
            for row, word in zip(targets[task], words, strict=False):
                row[: len(word)] = word
        return targets

    def _asked(self, texts: Sequence[str], task: Tasks) -> tuple[_Served, list[str]]:
        """What is served now, and the task of each text."""
        served = self._served
        if isinstance(texts, str):
            raise UserError("texts is one string: give a list of texts")
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"texts holds {odd[0]!r}: give a list of texts")
        names = [task] * len(texts) if isinstance(task, str) else list(task)
        if len(names) != len(texts):
            raise UserError(f"{len(texts)} texts, but {len(names)} tasks: name one for each")
        for name in dict.fromkeys(names):
            served.check(name)
        return served, names

    def _array(self, prompt: Any) -> np.ndarray:
        if prompt is None:
            return np.zeros((0, self.config.d_model), np.float32)
        if isinstance(prompt, np.ndarray | Array):
            return np.asarray(prompt)
        return prompt_folder.read(prompt, None if self._any_backbone else lambda: self.fingerprint)

    def _add(
        self,
        prompts: Mapping[str, Sequence[np.ndarray]],
        labels: Mapping[str, tuple[str, ...]],
        replace: bool,
    ) -> None:
        with self._changing:
            now = self._served
            held = now.bank
            for task in prompts if replace else ():
                held = held.remove(task) if task in held.slots else held
            self._served = self._with(held.add(prompts), {**now.labels, **labels})

    def _with(self, prompts: PromptBank, labels: Mapping[str, tuple[str, ...]]) -> _Served:
        params = join(self._backbone, prompts.leaves)
        return _Served(prompts, T5(self.config, prompts.sites), params, labels)


def load(
    config: str | T5Config,
    checkpoint: epath.PathLike | None = None,
    vocabulary: epath.PathLike | Vocabulary | None = None,
    *,
    layout: Layout | None = None,
    batch_size: int = 64,
    input_length: int = 512,
    tasks: int = 8,
    prompt_length: int = 0,
    shard_prompts: str | None = None,
    allow_other_backbone: bool = False,
) -> Model:
    """Loads a backbone to serve prompts with.

    Args:
      config: a preset's name ("demo" is complete in itself), or a shape.
      checkpoint: the weights, see `checkpoint.backbone.load`.
      vocabulary: a SentencePiece model, "bytes" for ByT5's, or an object that encodes and decodes.
      layout: from `sharding.layout`; None for rows divided over all devices.
      batch_size: most rows of a batch; more are made into several.
      input_length: tokens to which inputs are cut.
      tasks, prompt_length: room for so many prompts of this length from the start; it grows by
        doubling, and to the longest prompt, and only then batches are compiled again.
      shard_prompts: the mesh's axis, "data" or "model", that the prompts are divided over, if they
        are too many for each device.
      allow_other_backbone: take prompts whose card names another backbone.

    Raises:
      ValueError: naming what is missing or does not fit.

    >>> import prompt_tuning
    >>> prompt_tuning.load("demo")
    Model(8,655,104 parameters, 4+2 layers of 256; tasks: none)
    """
    if config == "demo":
        checkpoint = checkpoint or embedded.backbone()
        vocabulary = vocabulary or embedded.vocabulary()
    if checkpoint is None or vocabulary is None:
        missing = "checkpoint" if checkpoint is None else "vocabulary"
        raise UserError(f"load({config!r}): has no {missing}; name its file")
    shape = preset(config) if isinstance(config, str) else config
    tuned = initialize(shape, Method(), layout=layout or sharding.layout(), checkpoint=checkpoint)
    room = {"capacity": tasks, "length": prompt_length}
    return Model(
        shape,
        tuned.frozen,
        vocabulary if isinstance(vocabulary, Vocabulary) else read_vocabulary(vocabulary),
        tuned.layout,
        batch_size=batch_size,
        input_length=input_length,
        prompts=PromptBank.empty(shape.d_model, tuned.layout.mesh, **room, axis=shard_prompts),
        allow_other_backbone=allow_other_backbone,
        sums=tuned.sums,
    )
