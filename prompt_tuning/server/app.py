"""The HTTP API: OpenAI's routes, in which a task is a model name (docs/serving.md)."""

import asyncio
import dataclasses
import functools
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pydantic
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse, Response, StreamingResponse

from prompt_tuning import __version__
from prompt_tuning.analysis import neighbours
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.server import errors, limits
from prompt_tuning.server.auth import LOCAL, Role
from prompt_tuning.server.engine import Job, NotFinite, Stopped
from prompt_tuning.server.errors import Refused, json_response
from prompt_tuning.server.protocol import Classify, Completions, Embeddings, RowOfFile
from prompt_tuning.server.questions import Completion, Question, Settings, TooLong
from prompt_tuning.server.scheduler import Full
from prompt_tuning.server.service import Service, base64_of, card_of, line_of
from prompt_tuning.server.store import checked_name
from prompt_tuning.server.tasks import Served
from prompt_tuning.serving.answers import Classification
from prompt_tuning.transformer import int8
from prompt_tuning.transformer.paths import EMBEDDING, flatten
from prompt_tuning.transformer.vocabulary import SentencePiece

PAGE = Path(__file__).parent / "page"
_FILES = {"": "page.html", "page.js": "page.js", "page.css": "page.css"}
_POLICY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
WITHOUT_KEY = frozenset({"/", "/page.js", "/page.css", "/health", "/ready", "/openapi.json"})
_LINES = ("application/x-ndjson", "application/jsonl", "application/json")
_QUEUED = frozenset({"/v1/classify", "/v1/embeddings", "/v1/completions"})
_NOT_OFFERED = {
    "/v1/chat/completions": "a T5 has no template for chats; use /v1/completions or /v1/classify",
    "/v1/load_lora_adapter": "no path of the server is taken; PUT the file to /v1/models/NAME",
}
T = TypeVar("T")


def make_app(service: Service, hosts: frozenset[str] | None = None) -> FastAPI:
    """The app of a service, which the caller starts and ends.

    Args:
      service: The service.
      hosts: Names of the server that requests may use; None for any, or, if everyone may use the
        server, those of this machine.
    """
    if hosts is None and service.keys.is_open:
        hosts = frozenset(LOCAL)

    def most_bytes(method: str, path: str) -> int:
        if method == "PUT":
            return service.most_file_bytes
        return service.limits.rows_bytes if path == "/v1/rows" else service.limits.body_bytes

    def admit(headers: Mapping[str, str]) -> None:
        service.keys.check(headers, "use")
        _check_type(headers, "application/json")  # the validation of fields would come first
        try:
            service.engine.check()
        except Full as full:
            raise errors.refusal(full) from None

    app = FastAPI(
        title="prompt-tuning",
        version=__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        middleware=[
            Middleware(
                limits.Limits,
                most_bytes=most_bytes,
                seconds=service.limits.body_seconds,
                queued=_QUEUED,
                admit=admit,
                hosts=hosts,
                on_answer=service.metrics.on_answer,
            )
        ],
    )
    app.add_exception_handler(RequestValidationError, errors.on_validation)
    app.add_exception_handler(HTTPException, errors.on_http)
    for kind in (Refused, UserError, CheckpointError, Full, Stopped, NotFinite):
        app.add_exception_handler(kind, errors.on_refused)
    app.add_exception_handler(Exception, errors.on_refused)  # and uvicorn logs it
    _add_answers(app, service)
    _add_tasks(app, service)
    _add_state(app, service)
    return app


_BEARER = HTTPBearer(auto_error=False, description="Needed if the server has keys.")


def _needs(service: Service, role: Role) -> Any:
    async def check(  # what is not async runs in a thread
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        service.keys.check(request.headers, role)

    return Depends(check)


def _add_answers(app: FastAPI, service: Service) -> None:
    use = [_needs(service, "use")]
    questions = service.questions

    async def asked(
        request: Request,
        body: Completions | Classify | Embeddings,
        make: Callable[[Served], Question],
    ) -> tuple[Served, Question, list[Any], Job]:
        """The answers to a question; the question is dropped when the caller leaves."""

        async def ask() -> tuple[Served, Question, list[Any], Job]:
            served = await service.find(body.model)
            try:
                return served, *(await service.ask(served, body.texts, lambda: make(served)))
            except TooLong as error:
                field = "prompt" if isinstance(body, Completions) else "input"
                raise errors.refusal(error, field) from None

        return await _unless_gone(request, ask())

    @app.post("/v1/classify", dependencies=use, responses=_RESPONSES)
    async def classify(request: Request, body: Classify) -> Response:
        """The most probable label of each text, with probabilities."""
        served, question, answers, job = await asked(
            request,
            body,
            lambda served: questions.classify(served, body.texts, body.truncate, body.labels),
        )
        data = [{"index": i, **_classified(*answer)} for i, answer in enumerate(answers)]
        content = {"object": "list", "model": served.name, "data": data, **_usage(question)}
        return json_response(content | _warnings(service, question), headers=_facts(served, job))

    @app.post("/v1/embeddings", dependencies=use, responses=_RESPONSES)
    async def embeddings(request: Request, body: Embeddings) -> Response:
        """The encoder's mean state over each text's tokens, with the task's prompt in front."""
        served, question, vectors, job = await asked(
            request, body, lambda served: questions.embed(served, body.texts, body.truncate)
        )
        as_text = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64_of(vector) if as_text else vector.tolist(),
            }
            for i, vector in enumerate(vectors)
        ]
        content = {"object": "list", "model": served.name, "data": data, **_usage(question)}
        return json_response(content | _warnings(service, question), headers=_facts(served, job))

    @app.post(
        "/v1/completions",
        dependencies=use,
        responses=_RESPONSES | _answers("application/json", "text/event-stream"),
    )
    async def completions(request: Request, body: Completions) -> Response:
        """A text for each text; with `stream`, each whole text is one event."""
        if body.stream_options is not None and not body.stream:
            raise Refused(
                400, "stream_options: needs stream", "invalid_value", param="stream_options"
            )
        settings = Settings(
            body.max_tokens,
            body.temperature,
            body.top_k,
            body.top_p,
            body.seed,
            body.stops,
            body.logprobs,
        )
        served, question, answers, job = await asked(
            request,
            body,
            lambda served: questions.complete(served, body.texts, body.truncate, settings),
        )
        choices = [_choice(i, answer, body.logprobs) for i, answer in enumerate(answers)]
        made = sum(answer.generated for answer in answers)
        usage = _usage(question, made)
        head = {
            "id": f"cmpl-{request.state.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
            **_warnings(service, question),
        }
        headers = _facts(served, job)
        if not body.stream:
            return json_response({**head, "choices": choices, **usage}, headers=headers)
        events: list[dict[str, Any]] = [{**head, "choices": [choice]} for choice in choices]
        if body.stream_options is not None and body.stream_options.include_usage:
            events.append({**head, "choices": [], **usage})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return Response("".join([*lines, "data: [DONE]\n\n"]), 200, headers, "text/event-stream")

    @app.post(
        "/v1/rows",
        dependencies=use,
        responses=_RESPONSES | _answers("application/x-ndjson"),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            }
        },
    )
    async def rows(request: Request) -> Response:
        """Answers to lines of {"model", "input"} in their order: any mix of tasks in one batch.

        A line gets a label if its task has labels, otherwise text; an error is in its line.
        """
        _check_type(request.headers, *_LINES)
        service.ready_tasks()
        lines = [line for line in (await request.body()).split(b"\n") if line.strip()]
        if not lines:
            raise Refused(400, "the body has no lines", "invalid_value")
        return StreamingResponse(_answered(service, lines), 200, media_type="application/x-ndjson")


async def _answered(service: Service, lines: list[bytes]) -> AsyncIterator[bytes]:
    """The answers to lines, in order; two batches of them are asked at a time."""
    running: deque[asyncio.Task[bytes]] = deque()
    most = 2 * service.device.shapes.rows[-1]
    try:
        for index, line in enumerate(lines):
            if len(running) >= most:
                yield await running.popleft()
            running.append(asyncio.create_task(_answer_of_line(service, index, line)))
        while running:
            yield await running.popleft()
    finally:  # the caller has left
        for task in running:
            task.cancel()


async def _answer_of_line(service: Service, index: int, line: bytes) -> bytes:
    head: dict[str, Any] = {"index": index}
    try:
        row = RowOfFile.model_validate_json(line)
        head = {"index": index, "id": row.id, "model": row.model}
        while True:
            served = await service.find(row.model, accepted=True)
            try:
                question = functools.partial(_question, service, served, row)
                asked, [answer], _ = await service.ask(served, [row.input], question)
                break
            except Full as full:  # this caller's own rows may fill the queue
                await asyncio.sleep(min(full.retry_after, 1.0))
    except pydantic.ValidationError as error:
        return line_of(head | errors.of_validation(error).content)
    except Exception as error:
        refused = errors.refusal(error)
        if refused.status == 500:
            logging.getLogger("uvicorn.error").exception("a row of %s", head.get("model"))
        return line_of(head | refused.content)
    head |= _warnings(service, asked)
    if isinstance(answer, Completion):
        return line_of(head | {"text": answer.text, "logprob": answer.score})
    return line_of(head | _classified(*answer))


def _question(service: Service, served: Served, row: RowOfFile) -> Question:
    if served.labels:
        return service.questions.classify(served, [row.input], row.truncate, None)
    return service.questions.complete(served, [row.input], row.truncate, Settings(row.max_tokens))


def _add_tasks(app: FastAPI, service: Service) -> None:
    use, admin = [_needs(service, "use")], [_needs(service, "admin")]

    @app.get("/v1/models", dependencies=use, responses=_RESPONSES)
    async def models() -> Response:
        """The backbone and its tasks."""
        cards = [card_of(each, service.name) for each in service.ready_tasks().all()]
        return json_response({"object": "list", "data": cards})

    @app.get("/v1/models/{name}", dependencies=use, responses=_RESPONSES)
    async def model(name: str) -> Response:
        """A task."""
        served = await service.find(name)
        service.ready_tasks().release(served)
        return json_response(card_of(served, service.name), headers=_etag(served))

    @app.put(
        "/v1/models/{name}",
        dependencies=admin,
        status_code=201,
        responses=_RESPONSES | {200: {"description": "Replaced."}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def put(
        request: Request, name: str, label: Annotated[list[str] | None, Query()] = None
    ) -> Response:
        """Adds or replaces a task: a safetensors file of `prompt`, or `prompt0`, `prompt1`, ...

        The answer comes when requests can use the task.
        """
        checked_name(name)
        if unknown := [each for each in request.query_params if each != "label"]:
            raise Refused(
                400,
                f"{unknown[0]!r} in the address: only label is taken there, once for each word",
                "unsupported_field",
                param=unknown[0],
            )
        kind = request.headers.get("content-type", "application/octet-stream").split(";")[0]
        if kind.strip().lower() != "application/octet-stream":
            raise Refused(415, "the body must be application/octet-stream", "not_safetensors")
        condition = request.headers.get("if-none-match")
        if condition not in (None, "*"):
            raise Refused(400, "If-None-Match: only * is supported", "unsupported_field")
        content = await request.body()
        served, replaced = await service.changing(
            service.put, name, content, label, condition == "*"
        )
        card = card_of(served, service.name)
        return json_response(card, 200 if replaced else 201, _etag(served))

    @app.delete("/v1/models/{name}", dependencies=admin, responses=_RESPONSES)
    async def delete(name: str) -> Response:
        """Removes a task; requests that it has are answered."""
        await service.changing(service.delete, name)
        return json_response({"id": name, "object": "model", "deleted": True})

    found: dict[str, Any] = {}

    def nearest(served: Served) -> list[list[dict[str, Any]]]:
        """The nearest words to each vector; they are computed once for each file."""
        vocabulary = service.device.model.vocabulary
        if not isinstance(vocabulary, SentencePiece):
            raise Refused(404, "the vocabulary has no words", "not_offered")
        if served.digest not in found:
            if "words" not in found:
                table = flatten(service.device.model.task_set.backbone)[EMBEDDING]
                floats = np.asarray(int8.dequantize(table))
                found["words"] = neighbours.Words.of(floats, vocabulary, False)
            vectors = np.concatenate(service.ready_tasks().prompts_of(served))
            words = found["words"]
            ids, cosines = neighbours.nearest(vectors, words.table, 5, words.leave_out)
            if len(found) > 1000:
                found.clear()
            found[served.digest] = [
                [
                    {"word": word, "cosine": cosine}
                    for word, cosine in zip(words.named(tokens), values, strict=True)
                ]
                for tokens, values in zip(ids.tolist(), cosines.tolist(), strict=True)
            ]
        return found[served.digest]

    @app.get("/v1/models/{name}/neighbours", dependencies=use, responses=_RESPONSES)
    async def neighbours_of(name: str) -> Response:
        """The words nearest to each vector of a task's prompts, by cosine."""
        served = await service.find(name)
        try:
            if not sum(served.lengths):
                vectors: list = []
            else:
                vectors = await asyncio.to_thread(nearest, served)
        finally:
            service.ready_tasks().release(served)
        return json_response({"model": served.name, "vectors": vectors}, headers=_etag(served))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=_RESPONSES)
    async def health() -> Response:
        """Whether the process lives."""
        return json_response({"status": "ok"})

    @app.get("/ready", responses=_RESPONSES)
    async def ready() -> Response:
        """Whether requests are answered."""
        service.ready_tasks()
        return json_response({"status": "ready"})

    @app.get(
        "/metrics",
        dependencies=[_needs(service, "use")],
        responses=_RESPONSES | _answers("text/plain"),
    )
    async def metrics() -> Response:
        """Metrics in Prometheus's format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    for path, file in _FILES.items():
        app.add_api_route(f"/{path}", _page(file), include_in_schema=False, name=file)
    for path, why in _NOT_OFFERED.items():
        dependencies = [_needs(service, "use")]
        app.add_api_route(
            path,
            _refusing(why),
            methods=["POST"],
            include_in_schema=False,
            dependencies=dependencies,
        )


# Functions without arguments: FastAPI would take one from the address of a request.
def _page(file: str) -> Callable[[], Response]:
    def page() -> Response:
        return FileResponse(PAGE / file, headers=_POLICY)

    return page


def _refusing(why: str) -> Callable[[], Response]:
    def refuse() -> Response:
        raise Refused(404, why, "not_offered")

    return refuse


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the caller closes the connection.

    Raises:
      Refused: 499 if the caller did; nobody reads it.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refused(499, "the caller has left", "cancelled")
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_type(headers: Mapping[str, str], *types: str) -> None:
    """Web pages of elsewhere may send other types without asking the server first."""
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in types:
        raise Refused(
            415, f"the body must be {types[0]}, and the header Content-Type say so", "not_json"
        )


def _classified(answer: Classification, log_p: Any) -> dict[str, Any]:
    labels = list(answer.probabilities)
    return {
        "label": answer.label,
        "probs": [answer.probabilities[label] for label in labels],
        "num_classes": len(labels),
        "labels": labels,
        "logprobs": log_p.tolist(),
        "votes": [answer.votes[label] for label in labels],
    }


def _choice(index: int, answer: Completion, logprobs: int | None) -> dict[str, Any]:
    listed = None
    if logprobs is not None:
        tops = [dict(list(token.top.items())[:logprobs]) for token in answer.tokens]
        listed = {
            "tokens": [token.text for token in answer.tokens],
            "token_logprobs": [token.log_p for token in answer.tokens],
            "top_logprobs": tops if logprobs else None,
            "text_offset": [token.offset for token in answer.tokens],
        }
    return {
        "index": index,
        "text": answer.text,
        "logprobs": listed,
        "finish_reason": answer.finish_reason,
    }


def _usage(question: Question, made: int | None = None) -> dict[str, Any]:
    usage = {"prompt_tokens": question.tokens, "total_tokens": question.tokens + (made or 0)}
    if made is not None:
        usage["completion_tokens"] = made
    return {"usage": usage | {"soft_prompt_tokens": question.soft_tokens}}


def _warnings(service: Service, question: Question) -> dict[str, Any]:
    """`warnings` of an answer, if there are any; counted by their codes."""
    for each in question.warnings:
        service.metrics.warnings.labels(each.code).inc()
    return (
        {"warnings": list(map(dataclasses.asdict, question.warnings))} if question.warnings else {}
    )


def _facts(served: Served, job: Job) -> dict[str, str]:
    waited = (job.started or job.queued) - job.queued
    return {
        "x-prompt-digest": served.digest,
        "x-queue-ms": str(math.ceil(1000 * waited)),
        "x-batch-rows": str(job.batch_rows),
        "x-batch-tasks": str(job.batch_tasks),
    }


def _etag(served: Served) -> dict[str, str]:
    return {"ETag": f'"{served.digest}"'}


class _Error(pydantic.BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(pydantic.BaseModel):
    """What every error looks like."""

    error: _Error


_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 403, 404, 405, 408, 412, 413, 415, 429, 500, 503, 504, 507)
}


def _answers(*types: str) -> dict[int | str, dict[str, Any]]:
    """The content types of what a route answers."""
    return {200: {"description": "Answered.", "content": {each: {} for each in types}}}
