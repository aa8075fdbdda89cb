"""Runs a service in uvicorn: starts while it says so, and answers what it has before it ends."""

import contextlib
import gc
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn

from prompt_tuning.errors import UserError
from prompt_tuning.server.app import make_app
from prompt_tuning.server.service import Service

MORE_SECONDS = 5  # than a request may take, for those that were accepted before a signal
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """A server that a first signal lets finish its requests, and a second one ends at once."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, does not raise the signals again: the process ends with status 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self._service.draining = True  # no lock: a handler may interrupt any code
        self.should_exit = True


def run(service: Service, host: str, port: int) -> None:
    """Serves until a signal.

    Raises:
      UserError: if the address is not free.
      Exception: what the service's start raised.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"HOST = {host!r}, PORT = {port}: {error.strerror or error}") from error
    config = uvicorn.Config(
        make_app(service),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(service.limits.seconds) + MORE_SECONDS,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=65_536,
    )
    server = Server(service, config)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    failed: list[Exception] = []

    def start() -> None:
        try:
            service.start()
        except Exception as error:
            failed.append(error)
            server.should_exit = True
            return
        gc.collect()
        gc.freeze()  # looking at all of JAX's objects again takes half of the time of requests
        count = len(service.tasks or ())
        print(f"{address} is ready: {count} models", flush=True)

    print(f"{address} compiles its programs; {address}/ready says when it answers", flush=True)
    threading.Thread(target=start, daemon=True).start()
    server.run(sockets=[listening])
    service.drain()
    if failed:
        raise failed[0]
