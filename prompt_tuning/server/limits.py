"""Limits of requests, around the whole app: their bodies' size and time, and an id for each."""

import asyncio
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_tuning.server.errors import Refused

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Limits:
    """ASGI middleware: refuses bodies that are too large, declared or in parts, and slow ones."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        most_bytes: Callable[[str, str], int],
        seconds: float,
        queued: frozenset[str] = frozenset(),
        admit: Callable[[Mapping[str, str]], object] = lambda headers: None,
        hosts: frozenset[str] | None = None,
        on_answer: Callable[[str, int], object] = lambda path, status: None,
    ) -> None:
        """Wraps an app.

        Args:
          app: The app.
          most_bytes: The largest body of a method and a path.
          seconds: Time for a body to arrive.
          queued: Paths whose POSTs wait in the queue.
          admit: Called with the headers of each of those before its body is read, by lower-case
            names; raises `Refused` if it would be refused whatever its body says. Under overload
            most requests end here, on the cores that compute the others.
          hosts: Names that a request may use for the server, so that no web page reaches it by a
            name of its own; None for any.
          on_answer: Called with the path of the route and the status of each answer.
        """
        self._app, self._most_bytes = app, most_bytes
        self._seconds, self._hosts, self._on_answer = seconds, hosts, on_answer
        self._queued, self._admit = queued, admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in scope["headers"]}
        is_queued = scope["method"] == "POST" and scope["path"] in self._queued
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                unrouted = scope["path"] if is_queued else "none"
                path = route.path if route is not None else unrouted
                self._on_answer(path, message["status"])
                extra = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            self._check_host(headers.get("host", ""))
            if is_queued:
                self._admit(headers)
            body = await self._body(scope, headers.get("content-length", ""), receive)
        except Refused as refused:
            await refused.response()(scope, receive, send_with_id)
            return
        await self._app(scope, _replayed(body, receive), send_with_id)

    def _check_host(self, host: str) -> None:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._hosts is not None and name.strip("[]") not in self._hosts:
            raise Refused(400, "Host: is not this server's name; set HOST, or keys", "wrong_host")

    async def _body(self, scope: Scope, declared: str, receive: Receive) -> list[Message]:
        """The messages of a request's body, all of it."""
        most = self._most_bytes(scope["method"], scope["path"])
        too_large = Refused(413, f"the body is larger than {most} bytes", "too_large")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_large
        messages, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    messages.append(message)
                    size += len(message.get("body", b""))
                    if size > most:
                        raise too_large
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return messages
        except TimeoutError:
            raise Refused(408, "the body did not arrive in time", "slow_body") from None


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """Gives messages again that were received, and then those that follow."""
    waiting: list[Any] = list(reversed(messages))

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
