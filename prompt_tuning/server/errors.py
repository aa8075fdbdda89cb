"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

import json
import math
import re
from typing import Any

import pydantic
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.server.engine import NotFinite, Stopped
from prompt_tuning.server.questions import BadField, TooLong
from prompt_tuning.server.scheduler import Full
from prompt_tuning.server.store import DamagedStore
from prompt_tuning.server.tasks import Exists, NoRoom, NoTask

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    412: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
    507: "insufficient_capacity",
}


class Refused(Exception):
    """A request that is refused.

    Attributes:
      status: HTTP status.
      message: What is wrong, and what to do.
      code: A word for programs.
      param: The field that is wrong.
      retry_after: Seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = TYPES.get(self.status, TYPES[400 if self.status < 500 else 500])
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response(self.content, self.status, headers)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer in ASCII, which can hold half a surrogate pair of a request too."""
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def refusal(error: Exception, field: str = "input") -> Refused:
    """The answer to a request that ended with an error, of the texts in a field."""
    if isinstance(error, Refused):
        return error
    message = " ".join(str(error).split())
    if isinstance(error, Full):
        return Refused(
            429,
            f"the queue is full; try again in {math.ceil(error.retry_after)} s",
            "queue_full",
            retry_after=error.retry_after,
        )
    if isinstance(error, Stopped):
        return Refused(503, "the server is stopping; ask another one", "draining", retry_after=5)
    if isinstance(error, NoTask):
        return Refused(404, message, "model_not_found", param="model")
    if isinstance(error, Exists):
        return Refused(412, message, "model_exists", param="model")
    if isinstance(error, NoRoom):
        return Refused(507, message, "no_room")
    if isinstance(error, TooLong):
        return Refused(400, message, "context_length_exceeded", param=field)
    if isinstance(error, BadField):
        return Refused(400, message, "invalid_value", param=error.field)
    if isinstance(error, DamagedStore):  # no fault of the request; `Service` warns of it
        return Refused(503, message, "store_damaged", retry_after=5)
    if isinstance(error, CheckpointError):
        return Refused(400, message, "bad_prompt")
    if isinstance(error, UserError):
        return Refused(400, message, "invalid_value")
    if isinstance(error, NotFinite):
        return Refused(500, message, "not_finite")
    return Refused(500, "an error inside the server; its log has it", "internal_error")


_KIND = re.compile(r"constrained-|list\[|function-|str$|int$")  # pydantic's name of one of several


def of_validation(error: RequestValidationError | pydantic.ValidationError) -> Refused:
    """The answer to a request with a field of another type, or with an unknown one."""
    found = error.errors()
    # A field that may be a text or a list has errors of both; those of the kind given say more.
    first = next((each for each in found if each["type"] != "string_type"), found[0])
    place = [
        str(part)
        for part in first["loc"]
        if part not in ("body", "query", "path", "header") and not _KIND.match(str(part))
    ]
    name = ".".join(place)[:100] or None
    if first["type"] == "extra_forbidden":
        return Refused(
            400, f"{name}: is not supported; leave it out", "unsupported_field", param=name
        )
    if first["type"] == "json_invalid":
        return Refused(400, "the body is not valid JSON", "invalid_json")
    message = " ".join(f"{name or 'the body'}: {first['msg']}".split())
    return Refused(400, message[:300], "invalid_value", param=name)


async def on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return of_validation(error).response()


async def on_refused(request: Request, error: Exception) -> Response:
    return refusal(error).response()


async def on_http(request: Request, error: Exception) -> Response:
    """Errors of the router: no such path, no such method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    route = f"{request.method} {request.url.path[:100]}"
    message = {
        404: f"{route}: there is no such route; see /openapi.json",
        405: f"{route}: is not allowed; see /openapi.json",
    }.get(error.status_code, str(error.detail))
    response = Refused(error.status_code, message, "not_offered").response()
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # of all routes of this path; the router's is of the first
        scopes = [(route, route.matches(request.scope)[0]) for route in request.app.routes]
        allowed = {m for route, match in scopes if match != Match.NONE for m in route.methods or ()}
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response
