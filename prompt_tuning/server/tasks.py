"""The tasks that a server answers for: each is one safetensors file, under a name."""

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint import prompts
from prompt_tuning.checkpoint.card import TrainedWith
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.server.device import Device
from prompt_tuning.server.store import checked_name
from prompt_tuning.serving import arguments, prompt_folder
from prompt_tuning.serving.model import Model

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_LABELS, _CARD = "labels", "card"  # in a file's metadata, as JSON
_A_CARD = re.compile(r"card[0-9]+")  # of one prompt of an ensemble
MOST_LABELS = 256


class NoRoom(UserError):
    """The bank has no free slot, or the prompt is longer than what is reserved."""


class NoTask(UserError):
    """There is no task of this name."""


class Exists(UserError):
    """There is a task of this name already."""


@dataclasses.dataclass(eq=False)
class Served:
    """One version of a task; a version that is replaced answers the requests that it has.

    Attributes:
      name: Name by which requests ask for it.
      digest: SHA-256 of its file; "" for the backbone alone.
      key: Its name in the model, which differs between versions.
      labels: Label words; empty for a task that generates text.
      targets: Tokens of the labels [K, L] int32; None without labels.
      slots, lengths: Slot and number of vectors of each of its prompts.
      input_length: Number of tokens to which its inputs are cut.
      prefix: Text before every target, such as a sentinel.
      created: Seconds since 1970.
      trained_labels: Label words of its training; empty if no card says them.
      leases: Number of requests that hold its slots.
    """

    name: str
    digest: str
    key: str
    labels: tuple[str, ...]
    targets: np.ndarray | None
    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    input_length: int
    prefix: str
    created: int
    trained_labels: tuple[str, ...] = ()
    leases: int = 0
    retired: bool = False


class Tasks:
    """Tasks by name. A request leases a version, so that its slots are not given to another task.

    Attributes:
      backbone: Name of the backbone, which is a task too: without a prompt.
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        backbone: str,
        files: Mapping[str, bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Tasks of files by name, and all that they need compiled.

        Raises:
          UserError, CheckpointError: if one is refused, see `put`.
        """
        self._model, self._device, self.backbone = model, device, checked_name(backbone)
        self._clock = clock
        self._lock = threading.Lock()  # of what is below; held for a moment
        self._changes = threading.Lock()  # one change at a time
        self._served: dict[str, Served] = {}
        self._retired: list[Served] = []
        read = {name: self._read(name, content) for name, content in files.items()}
        lengths = (len(vectors) for parsed in read.values() for vectors in parsed.prompts)
        # The backbone's rows, without a prompt, ride along in batches of the shortest group.
        longest = sorted(lengths, reverse=True) or [0]
        for length in longest:
            self._device.admit(length, None)
        # The largest labels first, so that the programs of others need not exist at the start.
        labelled = [parsed for parsed in read.values() if parsed.labels]
        tokens = [label_tokens(x.labels, x.trained_with.target_prefix, model) for x in labelled]
        for sizes in sorted((array.shape for array in tokens), key=np.prod, reverse=True):
            self._device.admit(0, sizes)
        nothing = np.zeros((0, model.config.stack("encoder").width), np.float32)
        self._publish(_Parsed(self.backbone, "", [nothing]))
        for parsed in read.values():
            self._publish(parsed)

    def __len__(self) -> int:
        return len(self._served)

    @property
    def leases(self) -> int:
        """Number of requests that hold a task."""
        with self._lock:
            return sum(each.leases for each in (*self._served.values(), *self._retired))

    def all(self) -> list[Served]:
        """The tasks that are served now, in the order in which they were added."""
        with self._lock:
            return list(self._served.values())

    def find(self, model: str) -> Served:
        """The task of a name, or of NAME@DIGEST with at least 8 digits of its file's SHA-256.

        Raises:
          NoTask: if there is none.
        """
        name, at, digest = model.partition("@")
        with self._lock:
            served = self._served.get(name)
        exact = not at or (
            _DIGEST.fullmatch(digest) and served and served.digest.startswith(digest)
        )
        if served is None or not exact:
            raise NoTask(
                f"model = {model[:80]!r}: does not exist; GET /v1/models lists those that do"
            )
        return served

    def lease(self, model: str) -> Served:
        """As `find`; the task's slots stay its own until `release`."""
        while True:
            served = self.find(model)
            with self._lock:
                if not served.retired:
                    served.leases += 1
                    return served

    def release(self, served: Served) -> None:
        """Ends a lease; the slots of a task that was replaced are free after the last one."""
        with self._lock:
            served.leases -= 1
            free = served.retired and not served.leases
            if free:
                self._retired.remove(served)
        if free:
            self._model.remove_task(served.key)

    @contextlib.contextmanager
    def leased(self, model: str) -> Iterator[Served]:
        served = self.lease(model)
        try:
            yield served
        finally:
            self.release(served)

    def put(
        self,
        name: str,
        content: bytes,
        labels: Sequence[str] | None = None,
        *,
        only_new: bool = False,
        commit: Callable[[str, bytes], object] = lambda name, content: None,
    ) -> tuple[Served, bool]:
        """Adds or replaces a task; returns once requests can use it.

        Args:
          name: Name of the task.
          content: A safetensors file, see `prompts.from_bytes`; its metadata may have "labels", a
            JSON list of words, and "card", the JSON of a prompt's card, or "card0", "card1", ... of
            the prompts of an ensemble.
          labels: Label words; None for those in the file.
          only_new: Whether a task of this name is an error.
          commit: Stores name and file; called before requests see the task.

        Returns:
          The task, and whether there was one of this name.

        Raises:
          UserError, CheckpointError: if the name or the file is refused; nothing changes then.
        """
        if checked_name(name) == self.backbone:
            raise UserError(f"model = {name!r}: is the backbone's name; choose another")
        if labels is not None:
            content = with_labels(content, name, labels)
        with self._changes:
            if only_new and name in self._served:
                raise Exists(f"model = {name!r}: exists already")
            parsed = self._read(name, content)
            before = self._served.get(name)
            if before is not None and before.digest == parsed.digest:
                return before, True
            served = self._added(parsed)
            try:
                commit(name, content)
            except BaseException:
                self._retire(served)
                raise
            self._replace(name, served)
            return served, before is not None

    def delete(self, name: str, commit: Callable[[str], object] = lambda name: None) -> None:
        """Removes a task; the requests that it has are answered.

        Raises:
          NoTask: if there is none.
          UserError: if it is the backbone.
        """
        with self._changes:
            if self.find(name).name == self.backbone:
                raise UserError(f"model = {name!r}: is the backbone, which stays")
            if name not in self._served:
                raise UserError(f"model = {name!r}: give the name without a digest")
            commit(name)
            self._replace(name, None)

    def prompts_of(self, served: Served) -> list[np.ndarray]:
        """The prompts [P, D] of a task."""
        return self._model.prompts(served.key)

    def _read(self, name: str, content: bytes) -> "_Parsed":
        """Reads and checks the file of a task."""
        checked_name(name)
        arrays, metadata = prompts.from_bytes(content, name)
        width = self._model.config.stack("encoder").width
        for array in arrays:
            if fault := prompts.fault_of(array, width):
                raise CheckpointError(f"{name}: {fault}")
        names = [name] if len(arrays) == 1 else [f"{name}, prompt{i}" for i in range(len(arrays))]
        all_cards = _cards(metadata, name, len(arrays))
        for prompt, card, array in zip(names, all_cards, arrays, strict=True):
            cards.check_values(card, prompt, array)
            cards.check_is_prefix(card, prompt)
            if not self._model.allow_other_backbone:
                cards.check_backbone(card, prompt, lambda: self._model.fingerprint)
                cards.check_model(
                    card.trained_with if card else None,
                    prompt,
                    vocabulary=getattr(self._model.vocabulary, "fingerprint", ""),
                    model=self._model.config.of_model,
                )
        trained_with = prompt_folder.agreed(names, all_cards, lambda: arrays, name)
        if trained_with is not None:  # here as well, before minutes of compilation
            self._model.check_input_length(trained_with, f"task {name!r}")
        words = _words(metadata[_LABELS], name) if _LABELS in metadata else ()
        if len(words) > MOST_LABELS:
            raise UserError(f"{name}: has {len(words)} labels; at most {MOST_LABELS} are served")
        digest = hashlib.sha256(content).hexdigest()
        return _Parsed(name, digest, arrays, words, trained_with or TrainedWith())

    def _publish(self, parsed: "_Parsed") -> None:
        self._replace(parsed.name, self._added(parsed))

    def _added(self, parsed: "_Parsed") -> Served:
        """Puts a version on the device, and compiles what it needs; no request sees it yet."""
        model, key = self._model, f"{parsed.name}@{parsed.digest}"
        with self._lock:
            again = next((each for each in self._retired if each.key == key), None)
            if again is not None:  # its file is put again while it answers its last requests
                self._retired.remove(again)
                again.retired = False
                return again
        if not model.task_set.bank.fits(parsed.prompts):
            capacity, length, _ = model.task_set.bank.prompts.shape
            raise NoRoom(
                f"{parsed.name}: does not fit; there is room for {capacity} prompts of up to "
                f"{length} vectors (MOST_PROMPTS, MOST_VECTORS)"
            )
        vectors = [each if len(each) else None for each in parsed.prompts]  # None: the backbone
        model.add_task(key, vectors, parsed.labels, trained_with=parsed.trained_with)
        try:
            task_set, targets = model.task_set, None
            prefix = task_set.prefix(key)
            lengths = tuple(map(len, parsed.prompts))
            sizes = None
            if parsed.labels:
                targets = label_tokens(parsed.labels, prefix, model)
                sizes = targets.shape
            self._device.admit(max(lengths), sizes)
        except BaseException:
            model.remove_task(key)
            raise
        return Served(
            parsed.name,
            parsed.digest,
            key,
            parsed.labels,
            targets,
            task_set.bank.slots[key],
            lengths,
            min(task_set.input_length(key, model.input_length), model.input_length),
            prefix,
            int(self._clock()),
            tuple(parsed.trained_with.labels),
        )

    def _replace(self, name: str, served: Served | None) -> None:
        with self._lock:
            before = self._served.pop(name, None) if served is None else self._served.get(name)
            if served is not None:
                self._served[name] = served
        if before is not None:
            self._retire(before)

    def _retire(self, served: Served) -> None:
        """Frees the slots of a version that requests no longer find, once none has it leased."""
        with self._lock:
            served.retired = True
            if is_leased := served.leases > 0:
                self._retired.append(served)
        if not is_leased:
            self._model.remove_task(served.key)


@dataclasses.dataclass(frozen=True, eq=False)
class _Parsed:
    """The content of a task's file."""

    name: str
    digest: str
    prompts: list[np.ndarray]
    labels: tuple[str, ...] = ()
    trained_with: TrainedWith = dataclasses.field(default_factory=TrainedWith)


def label_tokens(labels: Sequence[str], prefix: str, model: Model) -> np.ndarray:
    """Labels as tokens [K, L] int32; 0 is padding."""
    by_task = arguments.label_targets({"": labels}, {"": prefix}, model.vocabulary.encode)
    tokens = by_task[""][: len(labels)]
    return tokens[:, : int(np.count_nonzero(tokens, axis=1).max())]


def with_labels(content: bytes, name: str, labels: Sequence[str]) -> bytes:
    """A task's file with other label words in its metadata."""
    arrays, metadata = prompts.from_bytes(content, name)
    return prompts.to_bytes(arrays, metadata | {_LABELS: json.dumps(list(labels))})


def files_of(folder: epath.PathLike) -> dict[str, bytes]:
    """The tasks of a folder of prompts (`prompt_folder.files`) as one file each, by name."""
    words = prompt_folder.labels(folder)
    files = {}
    for name, paths in prompt_folder.files(folder).items():
        arrays = [prompts.load(path) for path in paths]
        prompt_folder.trained_with(paths, f"task {name!r}")  # they must agree
        for path in paths:
            cards.check_prefix(path)
        metadata: dict[str, Any] = {_LABELS: json.dumps(words[name])} if name in words else {}
        for i, path in enumerate(paths):
            if (card_path := cards.path_of(path)).is_file():
                metadata[_CARD if len(paths) == 1 else f"{_CARD}{i}"] = card_path.read_text()
        files[name] = prompts.to_bytes(arrays, metadata)
    return files


def _cards(metadata: Mapping[str, str], name: str, count: int) -> list[cards.Card | None]:
    """The card of each prompt of a file, None for those without one; "card" is that of all."""
    keys = [_CARD] if count == 1 else [f"{_CARD}{i}" for i in range(count)]
    if unknown := sorted(key for key in metadata if _A_CARD.fullmatch(key) and key not in keys):
        raise UserError(f"{name}: has {unknown[0]!r}, but no prompt of this number")
    found = [cards.parse(metadata[key], name) if key in metadata else None for key in keys]
    if count == 1 or _CARD not in metadata:
        return found
    of_all = cards.parse(metadata[_CARD], name)
    if of_all.checksum or any(found):
        raise UserError(
            f"{name}: has {count} prompts, and {_CARD!r} is that of one; give 'card0', 'card1', ..."
        )
    return [of_all] * count


def _words(text: str, name: str) -> tuple[str, ...]:
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{name}: its labels must be a JSON list of words")
    return tuple(words)
