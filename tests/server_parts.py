"""A server of a tiny model for tests: with programs, or with arrays that are made up."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import jax
import numpy as np
import uvicorn
from numpy_prompts import BACKBONE, CONFIG, D, prompt

from prompt_tuning import Model, sharding
from prompt_tuning.checkpoint import prompts
from prompt_tuning.server.app import make_app
from prompt_tuning.server.device import ALTERNATIVES, Device, Kind, Shapes
from prompt_tuning.server.run import Server
from prompt_tuning.server.scheduler import Batch
from prompt_tuning.server.service import Service
from prompt_tuning.serving import PromptBank
from prompt_tuning.testing import Numbers

LABELS = {"a": ("5 6", "7", "9"), "b": ("8", "4 4 4"), "free": ()}
LENGTHS = {"a": 3, "b": 5, "free": 2}
SHAPES = Shapes((8,), (16,), (8,))


def file_of(vectors: np.ndarray | Sequence[np.ndarray], labels: Sequence[str] = ()) -> bytes:
    """A task's file."""
    arrays = [vectors] if isinstance(vectors, np.ndarray) else vectors
    return prompts.to_bytes(arrays, {"labels": json.dumps(labels)} if labels else {})


def files() -> dict[str, bytes]:
    return {name: file_of(prompt(LENGTHS[name]), LABELS[name]) for name in LABELS}


class AnyText(Numbers):
    """Takes words that are no numbers too, so that it reads any text."""

    def encode(self, text: str) -> list[int]:
        ids = [int(w) if re.fullmatch("[0-9]{1,2}", w) else len(w) for w in text.split()]
        return [i if i < CONFIG.vocab_size else 3 for i in ids]


def tiny_model(capacity: int = 8, length: int = 8) -> Model:
    layout = sharding.layout(devices=jax.devices()[:1])
    room = PromptBank.empty(D, layout.mesh, capacity=capacity, length=length)
    return Model(CONFIG, BACKBONE, AnyText(), layout, prompts=room, batch_size=8, input_length=16)


class MadeUp(Device):
    """A device without programs. Log p of a row's labels tell its slot: the label of number
    slot modulo K is certain; a generated text is the slot, and an embedding is full of it.

    Attributes:
      gate: Set while batches may run.
      error: What a batch raises.
      nans: Slots whose results are not numbers.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model, SHAPES)
        self.gate, self.batches = threading.Event(), list[Batch]()
        self.gate.set()
        self.error: Exception | None = None
        self.nans: set[int] = set()

    def _build(self, program: Any) -> None:
        self._programs[program] = lambda *arrays: ()

    def run(self, batch: Batch) -> list[tuple[np.ndarray, ...]]:
        self.gate.wait(10)
        self.batches.append(batch)
        if self.error is not None:
            raise self.error
        return [self._result(batch.kind, row.payload.input) for row in batch.rows]

    def _result(self, kind: Any, each: Any) -> tuple[np.ndarray, ...]:
        assert isinstance(kind, Kind)
        value = np.float32(np.nan if each.slot in self.nans else each.slot)
        if kind.operation == "embed":
            return (np.full(D, value, np.float32),)
        if kind.operation == "classify":
            scores = np.full(kind.sizes[0], -50.0, np.float32) + 0 * value
            scores[each.slot % len(each.arrays[0])] = 0.0
            return (scores,)
        length = kind.sizes[0]
        tokens = np.zeros(length, np.int32)
        tokens[:2] = 10 + each.slot, 1
        log_p = np.where(tokens > 0, np.float32(-0.5), np.float32(0)) + 0 * value
        top = np.tile(np.arange(10, 10 + ALTERNATIVES, dtype=np.int32), (length, 1))
        return tokens, log_p.sum(), log_p, top, -top.astype(np.float32)


@contextlib.contextmanager
def started(device: Device | None = None, content: Mapping[str, bytes] | None = None, **options):
    """A service that is ready; it has no leases at its end."""
    service = Service(
        "base", device or MadeUp(tiny_model()), files() if content is None else content, **options
    )
    service.start()
    try:
        yield service
        service.engine.drain()
        service.engine.join(10)
        assert service.tasks.leases == 0 and service.engine.waiting == 0
    finally:
        service.drain()


@contextlib.contextmanager
def listening(service: Service):
    """The address of a server of a service, on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        config = uvicorn.Config(make_app(service), log_level="error", timeout_graceful_shutdown=5)
        server = Server(service, config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def client(service: Service, **options) -> httpx.AsyncClient:
    """A client that calls the app in this process."""
    transport = httpx.ASGITransport(make_app(service, **options), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
