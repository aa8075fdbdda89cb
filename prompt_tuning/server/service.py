"""What the routes stand on: tasks, their store, the engine and its device, from start to end."""

import asyncio
import base64
import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.runtime.files import to_json
from prompt_tuning.server.auth import Keys
from prompt_tuning.server.device import Device
from prompt_tuning.server.engine import Engine, Job, NotFinite
from prompt_tuning.server.errors import Refused
from prompt_tuning.server.metrics import Metrics
from prompt_tuning.server.questions import Question, Questions
from prompt_tuning.server.scheduler import Scheduler
from prompt_tuning.server.store import Store
from prompt_tuning.server.tasks import NoTask, Served, Tasks

T = TypeVar("T")
SYNC_SECONDS = 2.0  # between two looks at a store that other processes may change
# Up to these, tokenizing and decoding take less than a thread's start and end.
SHORT_CHARACTERS, FEW_ROWS = 2_000, 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of what callers may ask for.

    Attributes:
      seconds: Time from a request to its answer; then 504.
      body_seconds: Time for a request's body to arrive.
      queue_seconds: Longest estimated wait; then 429.
      body_bytes: Largest JSON body.
      rows_bytes: Largest body of `/v1/rows`.
    """

    seconds: float = 60.0
    body_seconds: float = 20.0
    queue_seconds: float = 10.0
    body_bytes: int = 2**20
    rows_bytes: int = 2**24


class Service:
    """A server's parts; `start` compiles, and takes a minute.

    Attributes:
      name: Name of the backbone.
      tasks: None until `start` has read and compiled them.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        files: Mapping[str, bytes],
        *,
        store: Store | None = None,
        keys: Keys | None = None,
        limits: Limits | None = None,
        scheduler: type[Scheduler] = Scheduler,
    ) -> None:
        """A service of files of tasks, by name; those of the store come after them."""
        self.name, self.device, self.store = name, device, store
        self.keys, self.limits = keys or Keys(is_open=True), limits or Limits()
        self.metrics, self.questions = Metrics(), Questions(device)
        queue = scheduler(
            row_shapes=device.shapes.rows,
            token_shapes=device.shapes.tokens,
            most_seconds=self.limits.queue_seconds,
        )
        self.engine = Engine(device, queue, on_batch=self.metrics.on_batch)
        self._files, self._fixed = files, frozenset(files)
        self.tasks: Tasks | None = None
        self.draining = False
        self._ended = threading.Event()
        self._changing = concurrent.futures.ThreadPoolExecutor(1, "changes")
        for gauge, text, value in (
            ("requests_waiting", "Rows in the queue.", lambda: self.engine.waiting),
            ("requests_running", "Rows of the running batch.", lambda: self.engine.running),
            ("compilations_total", "Programs compiled.", lambda: device.compiled),
            ("shapes_missing_total", "Batches run by a larger program.", lambda: device.missing),
            ("tasks", "Tasks that are served.", lambda: len(self.tasks or ())),
            (
                "leases",
                "Requests that hold a task.",
                lambda: self.tasks.leases if self.tasks else 0,
            ),
        ):
            self.metrics.gauge(gauge, text, value)

    @property
    def is_ready(self) -> bool:
        return self.tasks is not None and not self.draining

    @property
    def most_file_bytes(self) -> int:
        """The largest file of a task: an ensemble that fills the bank, and its metadata."""
        capacity, length, width = self.device.model.task_set.bank.prompts.shape
        return min(capacity, 16) * length * width * 4 + 2**16 + 2**20

    def start(self) -> None:
        """Reads the tasks, compiles what they need, and starts the threads.

        Raises:
          UserError, CheckpointError: if a task is refused.
        """
        stored = {}
        if self.store is not None:
            digests = self.store.digests
            stored = {name: self.store.read(digest) for name, digest in digests.items()}
        tasks = Tasks(self.device.model, self.device, self.name, {**self._files, **stored})
        self.engine.start()
        threads = [lambda: self.device.build_wanted(self._ended.is_set)]
        if self.store is not None:
            threads.append(self._sync_always)
        for target in threads:
            threading.Thread(target=target, daemon=True).start()
        self._sync(tasks)  # the store may have changed while programs were compiled
        self.tasks = tasks

    def drain(self) -> None:
        """Takes no more requests; those that it has are answered."""
        self.draining = True
        self.engine.drain()
        self._ended.set()

    def ready_tasks(self) -> Tasks:
        """The tasks.

        Raises:
          Refused: 503 before the start, and after `drain`.
        """
        if self.draining:
            raise Refused(503, "the server is stopping; ask another one", "draining", retry_after=5)
        if self.tasks is None:
            raise Refused(
                503, "the server is starting; GET /ready says when", "starting", retry_after=5
            )
        return self.tasks

    async def find(self, model: str, accepted: bool = False) -> Served:
        """Leases a task; another process may have added it to the store a moment ago.

        Args:
          model: Name of the task.
          accepted: Whether it is for a request that was accepted before the server began to stop.
        """
        tasks = self.tasks if accepted and self.tasks is not None else self.ready_tasks()
        try:
            return tasks.lease(model)
        except UserError:
            if self.store is None:
                raise
        await asyncio.to_thread(self.sync)
        return tasks.lease(model)

    async def ask(
        self, served: Served, texts: Sequence[str], make: Callable[[], Question]
    ) -> tuple[Question, list, Job]:
        """Asks a leased task, and ends the lease once no row of the question is left.

        Args:
          served: From `find`.
          texts: The texts; where they are long, a thread tokenizes them.
          make: Makes the question.

        Returns:
          The question, its answers and its job.

        Raises:
          Full: If the texts would wait for too long.
          Refused: 504 when the time is over.
        """
        tasks = self.tasks
        assert tasks is not None  # it has leased a task
        try:
            self.engine.check()  # before the work of tokenizing
            is_short = sum(map(len, texts)) <= SHORT_CHARACTERS
            question = make() if is_short else await asyncio.to_thread(make)
        except BaseException:
            tasks.release(served)
            raise
        job = Job(question.rows, lambda: tasks.release(served))
        self.engine.submit(job)
        try:
            async with asyncio.timeout(self.limits.seconds):
                results = await asyncio.wrap_future(job.future)
        except TimeoutError:
            self.engine.cancel(job)
            raise Refused(
                504, f"no answer within {self.limits.seconds:g} s; try again later", "timeout"
            ) from None
        except asyncio.CancelledError:
            self.engine.cancel(job)
            self.metrics.cancelled.inc()
            raise
        except NotFinite:
            self.metrics.not_finite.inc()
            raise
        self.metrics.queue_seconds.observe((job.started or job.queued) - job.queued)
        if len(results) <= FEW_ROWS:
            return question, question.answers(results), job
        return question, await asyncio.to_thread(question.answers, results), job

    async def changing(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that changes tasks; one runs at a time, and not where texts wait."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._changing, function, *arguments)

    def put(self, name: str, content: bytes, labels: list[str] | None, only_new: bool) -> tuple:
        """Adds or replaces a task; see `Tasks.put`."""
        tasks, start = self.ready_tasks(), time.monotonic()
        commit = self.store.put if self.store is not None else lambda name, content: None
        try:
            found = tasks.put(name, content, labels, only_new=only_new, commit=commit)
        except Exception:
            self.metrics.loads.labels("refused").inc()
            raise
        self.metrics.loads.labels("ok").inc()
        self.metrics.load_seconds.observe(time.monotonic() - start)
        return found

    def delete(self, name: str) -> None:
        """Removes a task; see `Tasks.delete`."""
        commit = self.store.delete if self.store is not None else lambda name: None
        self.ready_tasks().delete(name, commit)

    def sync(self) -> None:
        """Adds, replaces and removes tasks as other processes have done in the store."""
        if self.tasks is not None:
            self._sync(self.tasks)

    def _sync(self, tasks: Tasks) -> None:
        if self.store is None:
            return
        # In this order: what this process adds meanwhile is in the second, and stays.
        mine = {each.name: each.digest for each in tasks.all() if each.name != self.name}
        digests = self.store.digests
        for name, digest in digests.items():
            if mine.get(name) != digest:
                tasks.put(name, self.store.read(digest))
        for name in mine.keys() - digests.keys() - self._fixed:
            with contextlib.suppress(NoTask):
                tasks.delete(name)

    def _sync_always(self) -> None:
        while not self._ended.wait(SYNC_SECONDS):
            try:
                self.sync()
            except (UserError, CheckpointError, OSError) as error:
                print(f"warning: {' '.join(str(error).split())}", flush=True)


def card_of(served: Served, backbone: str) -> dict[str, Any]:
    """What `/v1/models` says of a task."""
    is_backbone = served.name == backbone
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "prompt-tuning",
        "parent": None if is_backbone else backbone,
        "root": served.digest or backbone,
        "labels": list(served.labels),
        "prompts": 0 if is_backbone else len(served.lengths),
        "soft_prompt_tokens": sum(served.lengths),
        "max_input_tokens": served.input_length,
        "serves": ["completions", "embeddings", *(["classify"] if served.labels else [])],
    }


def base64_of(vector: np.ndarray) -> str:
    """Little-endian float32 values, as the `openai` client reads them."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def line_of(content: Any) -> bytes:
    """A line of NDJSON."""
    return to_json(content).encode() + b"\n"
