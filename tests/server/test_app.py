"""The HTTP API over a made-up device: forms of answers and errors, limits, keys, cancellation."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import re
import time

import numpy as np
import pytest
from numpy_prompts import D, prompt
from server_parts import LABELS, MadeUp, client, file_of, started, tiny_model

from prompt_tuning.checkpoint import prompts
from prompt_tuning.checkpoint.card import Card, TrainedWith, checksum_of
from prompt_tuning.server.app import WITHOUT_KEY, make_app
from prompt_tuning.server.auth import Keys, hash_of
from prompt_tuning.server.service import Limits, Service
from prompt_tuning.server.store import Store

OPEN = Keys(is_open=True, open_updates=True)


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture(scope="module")
def service():
    with started(keys=OPEN) as service:
        yield service


def ask(service: Service, method: str, path: str, **options):
    async def once():
        async with client(service) as http:
            return await http.request(method, path, **options)

    return run(once())


def slot_of(service: Service, name: str) -> int:
    return service.tasks.find(name).slots[0]


def test_models(service):
    answer = ask(service, "GET", "/v1/models")
    cards = {card["id"]: card for card in answer.json()["data"]}
    assert answer.json()["object"] == "list" and set(cards) == {"base", *LABELS}
    assert cards["a"]["labels"] == list(LABELS["a"]) and cards["a"]["soft_prompt_tokens"] == 3
    assert cards["a"]["parent"] == "base" and cards["base"]["parent"] is None
    digest = cards["a"]["root"]
    for name in ("a", f"a@{digest}", f"a@{digest[:8]}"):
        assert ask(service, "GET", f"/v1/models/{name}").json() == cards["a"]
    for name in ("c", "a@00000000", "a@", f"a@{digest[:7]}", "A", ""):
        if name:
            gone = ask(service, "GET", f"/v1/models/{name}")
            assert gone.status_code == 404 and gone.json()["error"]["code"] == "model_not_found"


def test_classify(service):
    body = {"model": "a", "input": ["3 4", "5"]}
    answer = ask(service, "POST", "/v1/classify", json=body)
    expected = LABELS["a"][slot_of(service, "a") % 3]
    content = answer.json()
    assert [each["label"] for each in content["data"]] == [expected] * 2
    first = content["data"][0]
    assert first["labels"] == list(LABELS["a"]) and first["num_classes"] == 3
    assert max(first["logprobs"]) == 0.0 and sum(first["probs"]) == pytest.approx(1)
    assert content["usage"] == {"prompt_tokens": 5, "total_tokens": 5, "soft_prompt_tokens": 6}
    assert answer.headers["x-prompt-digest"] == service.tasks.find("a").digest
    assert answer.headers["x-batch-rows"] == "2" and answer.headers["x-batch-tasks"] == "1"
    other = ask(service, "POST", "/v1/classify", json=body | {"labels": ["9", "8"]})
    assert set(other.json()["data"][0]["labels"]) == {"9", "8"}


def test_completions(service):
    slot = slot_of(service, "free")
    body = {"model": "free", "prompt": "3 4", "max_tokens": 8, "logprobs": 2}
    answer = ask(service, "POST", "/v1/completions", json=body).json()
    [choice] = answer["choices"]
    assert choice["text"] == str(10 + slot) and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"] == [str(10 + slot)]
    assert choice["logprobs"]["token_logprobs"] == [-0.5]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [2]
    assert answer["usage"]["completion_tokens"] == 2 and answer["object"] == "text_completion"


def test_a_stop_text_inside_the_last_token_is_a_stop(service):
    text = str(10 + slot_of(service, "free"))
    body = {"model": "free", "prompt": "3 4", "max_tokens": 1, "stop": text[1]}
    [choice] = ask(service, "POST", "/v1/completions", json=body).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[0], "stop")


def test_streamed_completions(service):
    body = {"model": "free", "prompt": ["3", "4"], "stream": True}
    body["stream_options"] = {"include_usage": True}
    answer = ask(service, "POST", "/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last, end = re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)
    assert end == "[DONE]" and json.loads(last)["usage"]["prompt_tokens"] == 4
    assert [json.loads(event)["choices"][0]["index"] for event in events] == [0, 1]


def test_embeddings(service):
    body = {"model": "a", "input": "3 4"}
    [listed] = ask(service, "POST", "/v1/embeddings", json=body).json()["data"]
    body["encoding_format"] = "base64"
    [encoded] = ask(service, "POST", "/v1/embeddings", json=body).json()["data"]
    vector = np.frombuffer(base64.b64decode(encoded["embedding"]), "<f4")
    np.testing.assert_array_equal(vector, listed["embedding"])
    np.testing.assert_array_equal(vector, np.full(D, slot_of(service, "a")))


def test_rows_of_any_tasks_are_answered_in_their_order(service):
    names = ["a", "free", "b", "gone", "a"] * 5
    lines = [json.dumps({"model": name, "input": "3", "id": i}) for i, name in enumerate(names)]
    lines[7] = "{"
    lines_of = {"content-type": "application/x-ndjson"}
    answer = ask(service, "POST", "/v1/rows", content="\n".join(lines).encode(), headers=lines_of)
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["index"] for row in found] == list(range(25))
    for i, (name, row) in enumerate(zip(names, found, strict=True)):
        if i == 7 or name == "gone":
            code = "invalid_json" if i == 7 else "model_not_found"
            assert row["error"]["code"] == code, row
        elif name == "free":
            assert row["id"] == i and row["text"] == str(10 + slot_of(service, "free"))
        else:
            assert row["label"] == LABELS[name][slot_of(service, name) % len(LABELS[name])]


BODIES = {
    "classify": {"model": "a", "input": "3"},
    "completions": {"model": "a", "prompt": "3"},
    "embeddings": {"model": "a", "input": "3"},
}


@pytest.mark.parametrize(
    ("route", "change", "code", "param"),
    [
        ("classify", {"input": ...}, "invalid_value", "input"),
        ("classify", {"input": ""}, None, None),
        ("classify", {"input": []}, "invalid_value", None),
        ("classify", {"input": 3}, "invalid_value", None),
        ("classify", {"model": "free"}, "invalid_value", "model"),
        ("classify", {"top": 1}, "unsupported_field", "top"),
        ("classify", {"labels": ["7", "7"]}, "invalid_value", None),
        ("classify", {"labels": []}, "invalid_value", "labels"),
        ("classify", {"labels": [str(i) for i in range(10, 19)]}, "invalid_value", "labels"),
        ("classify", {"input": "9 " * 40}, "context_length_exceeded", "input"),
        ("classify", {"input": "9 " * 40, "truncate": True}, None, None),
        ("classify", {"input": "\ud800"}, "invalid_value", None),
        ("classify", {"model": "\ud800"}, "invalid_value", "model"),
        ("completions", {"n": 2}, "invalid_value", "n"),
        ("completions", {"n": 1}, None, None),
        ("completions", {"suffix": "x"}, "unsupported_field", "suffix"),
        ("completions", {"echo": True}, "invalid_value", "echo"),
        ("completions", {"max_tokens": 9}, "invalid_value", "max_tokens"),
        ("completions", {"temperature": -1}, "invalid_value", "temperature"),
        ("completions", {"seed": 2**32}, "invalid_value", "seed"),
        ("completions", {"prompt": [3, 4]}, "invalid_value", "prompt"),
        ("completions", {"prompt": "3 " * 40}, "context_length_exceeded", "prompt"),
        ("completions", {"stop": list("abcde")}, "invalid_value", "stop"),
        ("classify", {"input": "3 " * 40}, "context_length_exceeded", "input"),
        ("classify", {"input": []}, "invalid_value", "input"),
        ("embeddings", {"dimensions": 2}, "unsupported_field", "dimensions"),
    ],
)
def test_what_is_wrong_is_named(service, route, change, code, param):
    body = {name: value for name, value in (BODIES[route] | change).items() if value is not ...}
    headers = {"content-type": "application/json"}
    content = json.dumps(body).encode()
    answer = ask(service, "POST", f"/v1/{route}", content=content, headers=headers)
    if code is None:
        assert answer.status_code == 200, answer.text
        return
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and error["code"] == code, error
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert param is None or error["param"] == param


def test_a_number_that_is_not_finite_and_a_deep_body_are_refused(service):
    headers = {"content-type": "application/json"}
    for content in (
        b'{"model": "a", "prompt": "3", "temperature": NaN}',
        b'{"model": "a", "prompt": "3", "temperature": 1e999}',
        b"[" * 100_000,
        b"\xff",
        b"",
    ):
        answer = ask(service, "POST", "/v1/completions", content=content, headers=headers)
        assert answer.status_code == 400, (content[:50], answer.text)


def test_bodies_are_limited_declared_or_in_parts(service):
    async def parts():
        for _ in range(20):
            yield b" " * 100_000

    headers = {"content-type": "application/json"}
    for content in (b" " * 2**21, parts()):
        answer = ask(service, "POST", "/v1/classify", content=content, headers=headers)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


def test_types_of_bodies_hosts_and_routes(service):
    body = json.dumps({"model": "a", "input": "3"})
    for kind in ({"content-type": "text/plain"}, {}):
        for route in ("classify", "embeddings", "completions", "rows"):
            answer = ask(service, "POST", f"/v1/{route}", content=body, headers=kind)
            assert answer.status_code == 415 and "Content-Type" in answer.text
    elsewhere = ask(service, "GET", "/health", headers={"host": "evil.example"})
    assert elsewhere.status_code == 400 and elsewhere.json()["error"]["code"] == "wrong_host"
    assert ask(service, "GET", "/v1/classify").status_code == 405
    assert ask(service, "GET", "/nothing").json()["error"]["type"] == "not_found_error"
    chat = ask(service, "POST", "/v1/chat/completions", json={})
    assert chat.status_code == 404 and "template" in chat.json()["error"]["message"]


def test_requests_have_ids(service):
    mine = ask(service, "GET", "/health", headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    other = ask(service, "GET", "/health", headers={"x-request-id": "a b\t"})
    assert re.fullmatch(r"[0-9a-f]{32}", other.headers["x-request-id"])


def test_a_task_is_put_replaced_and_deleted(service):
    file, other = file_of(prompt(4, 1), ["7", "8"]), file_of([prompt(4, 2), prompt(2, 3)])
    put = ask(service, "PUT", "/v1/models/new", content=file)
    assert put.status_code == 201 and put.json()["labels"] == ["7", "8"], put.text
    assert put.headers["etag"] == f'"{put.json()["root"]}"'
    only_new = {"if-none-match": "*"}
    again = ask(service, "PUT", "/v1/models/new", content=other, headers=only_new)
    assert again.status_code == 412
    ensemble = ask(service, "PUT", "/v1/models/new?label=5&label=6", content=other)
    assert ensemble.status_code == 200 and ensemble.json()["prompts"] == 2
    body = {"model": "new", "input": "3"}
    [answer] = ask(service, "POST", "/v1/classify", json=body).json()["data"]
    assert sum(answer["votes"]) == 2 and answer["labels"] == ["5", "6"]
    assert ask(service, "DELETE", "/v1/models/new").json()["deleted"] is True
    assert ask(service, "POST", "/v1/classify", json=body).status_code == 404
    assert ask(service, "DELETE", "/v1/models/new").status_code == 404
    assert ask(service, "DELETE", "/v1/models/base").status_code == 400
    assert len(service.device.model.tasks) == len(service.tasks)


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("new", b"junk", 400),
        ("new", b"\x80\x04cos\nsystem\n(S'true'\ntR.", 400),
        ("new", file_of(prompt(3)[:, :5]), 400),
        ("new", file_of(prompt(3) * np.inf), 400),
        ("new", file_of(prompt(9)), 507),
        ("new", file_of([prompt(1, i) for i in range(8)]), 507),
        ("new", file_of(prompt(3), ["7", "7"]), 400),
        ("base", file_of(prompt(3)), 400),
        ("..", file_of(prompt(3)), 400),
        ("a" * 65, file_of(prompt(3)), 400),
        ("%2e%2e%2fx", file_of(prompt(3)), 404),
    ],
)
def test_what_is_no_task_is_refused_and_nothing_changes(service, name, content, status):
    before = [each.digest for each in service.tasks.all()], service.device.model.tasks
    answer = ask(service, "PUT", f"/v1/models/{name}", content=content)
    assert answer.status_code in (status, 404 if name == ".." else status), answer.text
    assert ([each.digest for each in service.tasks.all()], service.device.model.tasks) == before


def card_of(service, vectors, **changes) -> str:
    """The card of a prompt of the service's backbone; `changes` are of it or of `trained_with`."""
    names = {field.name for field in dataclasses.fields(TrainedWith)}
    training = {name: changes.pop(name) for name in names & changes.keys()}
    backbone = {"fingerprint": service.device.model.fingerprint, "d_model": D}
    fields = dict.fromkeys(
        ("backbone", "method", "initialisation", "optimizer", "version", "config"), ""
    )
    fields |= backbone | {"task": "t", "length": len(vectors), "placement": "prefix", "metric": {}}
    fields |= {"learning_rate": 0.1, "steps": 1, "checksum": checksum_of(vectors)} | changes
    training = TrainedWith(**{"tasks": ["t"], "lengths": {"inputs": 8}} | training)
    return json.dumps(dataclasses.asdict(Card(**fields, trained_with=training)))


ONE, OTHER = prompt(3, 5), prompt(2, 6)


@pytest.mark.parametrize(
    ("vectors", "cards", "message"),
    [
        ([ONE, ONE], {}, "new, prompt0 and new, prompt1 are the same prompt, whose vote"),
        ([ONE, ONE.astype(np.float16)], {}, "are the same prompt"),
        ([ONE, OTHER, ONE], {}, "prompt0 and new, prompt2 are the same prompt"),
        ([ONE, OTHER], {}, ""),
        ([ONE], {"card": (ONE, {})}, ""),
        ([ONE], {"card": (OTHER, {})}, "has 3 vectors, and its card says 2"),
        ([ONE], {"card0": (ONE, {})}, "has 'card0', but no prompt of this number"),
        (
            [ONE, OTHER],
            {"card": (ONE, {})},
            "has 2 prompts, and 'card' is that of one; give 'card0'",
        ),
        ([ONE, OTHER], {"card0": (ONE, {}), "card1": (OTHER, {})}, ""),
        ([ONE, OTHER], {"card0": (ONE, {})}, ""),
        ([ONE, OTHER], {"card1": (ONE, {})}, "new, prompt1: has 2 vectors, and its card says 3"),
        ([ONE, OTHER], {"card2": (ONE, {})}, "has 'card2', but no prompt of this number"),
        (
            [ONE, OTHER],
            {"card0": (ONE, {}), "card1": (OTHER, {"tasks": ["u"]})},
            "prompt0 was trained with the tasks ['t'], new, prompt1 with ['u']",
        ),
        (
            [ONE, OTHER],
            {"card0": (ONE, {"target_prefix": "4"})},
            "the target prefix '4', and no card says so of new, prompt1",
        ),
        ([ONE], {"card": (ONE, {"lengths": {"inputs": 0}})}, "'lengths' must be"),
        ([ONE], {"card": (ONE, {"fingerprint": "0" * 16})}, "was trained on the backbone"),
        (
            [ONE, OTHER],
            {"card0": (ONE, {}), "card1": (OTHER, {"fingerprint": "0" * 16})},
            "new, prompt1: was trained on the backbone",
        ),
        ([ONE], {"card": (ONE, {"model": {"tied_head": "other"}})}, ""),  # not known here
    ],
)
def test_cards_and_prompts_of_a_file_are_checked_as_those_of_files(
    service, vectors, cards, message
):
    metadata = {key: card_of(service, of, **changes) for key, (of, changes) in cards.items()}
    content = prompts.to_bytes(vectors, metadata)
    answer = ask(service, "PUT", "/v1/models/new", content=content)
    if message:
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
        return
    assert answer.status_code == 201, answer.text
    ask(service, "DELETE", "/v1/models/new")


@pytest.mark.parametrize(
    ("own", "asked", "others"),
    [
        (["7", "9"], None, ""),
        (["7", "9"], ["9", "7"], ""),
        (["7", "9"], ["7"], ""),
        (["7", "9"], ["8", "9"], "not on '8', which"),
        (["7", "8"], None, "not on '8', which"),
    ],
)
def test_label_words_that_a_prompt_was_not_trained_on(service, own, asked, others):
    card = card_of(service, ONE, labels=["7", "9"])
    content = prompts.to_bytes([ONE], {"card": card, "labels": json.dumps(own)})
    with pytest.warns() if own != ["7", "9"] else contextlib.nullcontext():
        assert ask(service, "PUT", "/v1/models/new", content=content).status_code == 201
    body = {"model": "new", "input": "3"} | ({"labels": asked} if asked else {})
    warned = ask(service, "POST", "/v1/classify", json=body).json().get("warnings", [])
    assert [(each["code"], each["index"]) for each in warned] == (
        [("untrained_labels", None)] if others else []
    )
    assert all(others in each["message"] for each in warned)
    ask(service, "DELETE", "/v1/models/new")


@pytest.mark.parametrize("query", ["labels=5&labels=6", "label=5&name=x"])
def test_a_misspelled_parameter_does_not_put_a_task_without_labels(service, query):
    answer = ask(service, "PUT", f"/v1/models/new?{query}", content=file_of(ONE))
    assert answer.status_code == 400 and "only label is taken" in answer.text
    assert "new" not in service.device.model.tasks


@pytest.mark.parametrize("path", ["", "page.js"])
@pytest.mark.parametrize("file", ["/etc/passwd", "../app.py", "page.css"])
def test_the_page_is_its_own_files_alone(service, path, file):
    plain, asked = (ask(service, "GET", f"/{path}", params=p) for p in ({}, {"file": file}))
    assert asked.status_code == 200 and asked.content == plain.content


def test_a_route_that_is_not_offered_says_its_own_reason(service):
    answer = ask(service, "POST", "/v1/chat/completions?why=mine&api-version=1", json={})
    assert answer.status_code == 404 and "template" in answer.json()["error"]["message"]


@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_server_may_allow_other_backbones(is_allowed):
    device = MadeUp(tiny_model())
    device.model.allow_other_backbone = is_allowed
    with started(device, {}, keys=OPEN) as service:
        other = {"fingerprint": "0" * 16, "vocabulary": "1" * 16}
        content = prompts.to_bytes([ONE], {"card": card_of(service, ONE, **other)})
        answer = ask(service, "PUT", "/v1/models/new", content=content)
        assert answer.status_code == (201 if is_allowed else 400)
        assert is_allowed or "ALLOW_OTHER_BACKBONE" in answer.json()["error"]["message"]


def routes(app):
    return [
        (method, route.path.replace("{name}", "a"))
        for route in app.routes
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]


def test_every_route_needs_a_key_but_those_of_a_list(service):
    keys = Keys((hash_of("user"),), (hash_of("boss"),))
    with started(content={}, keys=keys) as closed:
        app = make_app(closed)

        async def statuses(key: str | None) -> dict:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            async with client(closed) as http:
                return {
                    (method, path): (await http.request(method, path, headers=headers)).status_code
                    for method, path in routes(app)
                }

        nobody, wrong, user, boss = (run(statuses(key)) for key in (None, "other", "user", "boss"))
        for (method, path), status in nobody.items():
            is_open = path in WITHOUT_KEY
            assert (status == 401) != is_open, (method, path, status)
            assert (wrong[method, path] == 401) != is_open
            is_change = method in ("PUT", "DELETE")
            assert (user[method, path] == 403) == is_change, (method, path, user[method, path])
            assert boss[method, path] not in (401, 403)


def test_without_keys_tasks_change_only_if_allowed():
    with started(content={}) as service:
        assert ask(service, "PUT", "/v1/models/x", content=file_of(prompt(2))).status_code == 403
        assert ask(service, "DELETE", "/v1/models/x").status_code == 403


def test_states_of_a_service():
    service = Service("base", MadeUp(tiny_model()), {})
    early = ask(service, "POST", "/v1/classify", json={"model": "a", "input": "3"})
    assert early.status_code == 503 and early.json()["error"]["code"] == "starting"
    assert early.headers["retry-after"] == "5" and ask(service, "GET", "/ready").status_code == 503
    service.start()
    assert ask(service, "GET", "/ready").status_code == 200
    service.drain()
    late = ask(service, "GET", "/ready")
    assert late.status_code == 503 and late.json()["error"]["code"] == "draining"
    assert ask(service, "GET", "/health").status_code == 200


def test_a_full_queue_refuses_and_says_when_to_return():
    with started(limits=Limits(queue_seconds=0.0)) as service:
        body = {"model": "a", "input": "3"}
        full = {"model": "a", "input": ["3"] * 8}
        ask(service, "POST", "/v1/classify", json=full)  # from here on the speed is known
        device = service.device
        device.gate.clear()

        async def flood():
            async with client(service) as http:
                asking = [
                    asyncio.create_task(http.post("/v1/classify", json=body)) for _ in range(6)
                ]
                await asyncio.sleep(0.3)
                asking.append(asyncio.create_task(http.post("/v1/classify", json=body)))
                await asyncio.sleep(0.1)  # it waits: one before it runs, the others are refused
                unread = await http.post(
                    "/v1/completions",
                    content=b"not JSON",
                    headers={"content-type": "application/json"},
                )
                metrics = (await http.get("/metrics")).text
                device.gate.set()
                return await asyncio.gather(*asking), unread, metrics

        answers, unread, metrics = run(flood())
        assert unread.status_code == 429  # whatever the body says
        assert '{code="429",endpoint="/v1/completions"}' in metrics
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}, statuses
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"


def test_a_request_that_takes_too_long_ends_and_is_not_run():
    with started(limits=Limits(seconds=0.2)) as service:
        service.device.gate.clear()
        body = {"model": "a", "input": "3"}

        async def two():
            async with client(service) as http:
                first = asyncio.create_task(http.post("/v1/classify", json=body))
                await asyncio.sleep(0.05)
                return await asyncio.gather(first, http.post("/v1/classify", json=body))

        assert [answer.status_code for answer in run(two())] == [504, 504]
        assert service.tasks.leases == 1  # of the row that runs
        service.device.gate.set()


def test_a_caller_who_leaves_while_queued_is_not_run():
    with started() as service:
        service.device.gate.clear()
        body = {"model": "a", "input": "3"}

        async def leave():
            async with client(service) as http:
                first = asyncio.create_task(http.post("/v1/classify", json=body))
                await asyncio.sleep(0.1)
                second = asyncio.create_task(http.post("/v1/classify", json=body | {"input": "4"}))
                await asyncio.sleep(0.1)
                second.cancel()
                await asyncio.sleep(0.1)
                waiting = service.engine.waiting
                service.device.gate.set()
                return waiting, (await first).status_code

        assert run(leave()) == (0, 200)
        assert sum(len(batch.rows) for batch in service.device.batches) == 1


def test_a_result_that_is_not_a_number_is_an_error_of_its_request_alone():
    with started() as service:
        service.device.nans.add(slot_of(service, "a"))
        for name, status in (("a", 500), ("b", 200)):
            for path, field in (("classify", "input"), ("completions", "prompt")):
                answer = ask(service, "POST", f"/v1/{path}", json={"model": name, field: "3"})
                assert answer.status_code == status
        assert "not_finite_total 2.0" in ask(service, "GET", "/metrics").text


def test_an_error_of_the_device_ends_its_requests_alone():
    with started() as service:
        body = {"model": "a", "input": "3"}
        service.device.error = RuntimeError("out of memory at 0x1234")
        answer = ask(service, "POST", "/v1/classify", json=body)
        assert answer.status_code == 500 and "0x1234" not in answer.text
        service.device.error = None
        assert ask(service, "POST", "/v1/classify", json=body).status_code == 200


def test_a_task_that_is_replaced_answers_the_requests_that_it_has():
    with started(keys=OPEN) as service:
        service.device.gate.clear()
        old = service.tasks.find("a")
        body = {"model": "a", "input": "3"}

        async def replace():
            async with client(service) as http:
                asking = asyncio.create_task(http.post("/v1/classify", json=body))
                await asyncio.sleep(0.1)
                new = file_of(prompt(3, 9), ["4", "5", "6"])
                put = await http.put("/v1/models/a", content=new)
                deleted = await http.delete("/v1/models/b")
                other = await http.put("/v1/models/c", content=file_of(prompt(1, 4)))
                taken = [*service.tasks.find("a").slots, *service.tasks.find("c").slots]
                service.device.gate.set()
                return (await asking).json(), [put, deleted, other], taken

        answer, changes, taken = run(replace())
        assert [change.status_code for change in changes] == [200, 200, 201]
        assert answer["data"][0]["label"] == LABELS["a"][old.slots[0] % 3]
        assert old.slots[0] not in taken
    assert f"a@{old.digest}" not in service.device.model.tasks  # its slot is free


def test_processes_that_share_a_store_have_the_same_tasks(tmp_path):
    file = file_of(prompt(2), ["7", "8"])
    with (
        started(content={}, keys=OPEN, store=Store(tmp_path)) as one,
        started(content={}, keys=OPEN, store=Store(tmp_path)) as two,
    ):
        assert ask(one, "PUT", "/v1/models/new", content=file).status_code == 201
        assert ask(two, "GET", "/v1/models/new").json()["labels"] == ["7", "8"]  # at once
        ask(one, "DELETE", "/v1/models/new")
        end = time.monotonic() + 10
        while len(two.tasks) > 1 and time.monotonic() < end:
            time.sleep(0.1)
        assert len(two.tasks) == 1
    ask(one, "GET", "/health")


def test_what_the_store_lost_during_the_start_is_not_served(tmp_path):
    store = Store(tmp_path)
    store.put("old", file_of(prompt(2)))

    class Slow(MadeUp):
        def admit(self, longest: int, labels: tuple[int, int] | None) -> None:
            super().admit(longest, labels)
            store.delete("old")
            store.put("new", file_of(prompt(3)))

    with started(Slow(tiny_model()), {}, store=store) as service:
        assert [each.name for each in service.tasks.all()] == ["base", "new"]


def test_tasks_of_a_store_come_back(tmp_path):
    with started(content={}, keys=OPEN, store=Store(tmp_path)) as service:
        ask(service, "PUT", "/v1/models/new", content=file_of(prompt(2), ["7", "8"]))
    with started(content={}, store=Store(tmp_path)) as service:
        assert service.tasks.find("new").labels == ("7", "8")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_store_that_is_damaged_later_is_no_fault_of_the_request(tmp_path):
    with started(content={}, keys=OPEN, store=Store(tmp_path)) as service:
        ask(service, "PUT", "/v1/models/new", content=file_of(prompt(2), ["7", "8"]))
        (tmp_path / "manifest.json").write_text("{")
        own, other, change = (
            ask(service, "POST", "/v1/classify", json={"model": "new", "input": "3"}),
            ask(service, "POST", "/v1/classify", json={"model": "other", "input": "3"}),
            ask(service, "PUT", "/v1/models/two", content=file_of(prompt(3))),
        )
        assert own.status_code == 200
        for answer in (other, change):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert answer.json()["error"]["code"] == "store_damaged"
        assert len(service.tasks) == 2  # nothing was half added


def test_metrics_show_the_mix_and_no_names(service):
    ask(service, "POST", "/v1/classify", json={"model": "a", "input": "3"})
    text = ask(service, "GET", "/metrics").text
    assert "batch_tasks_count" in text and 'requests_total{code="200"' in text
    assert "free" not in text


def test_the_page_loads_nothing_from_elsewhere(service):
    page = ask(service, "GET", "/")
    assert (
        page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    )
    for path in ("/", "/page.js", "/page.css"):
        text = ask(service, "GET", path).text
        assert not re.search(r"(src|href)=.?https?:|@import|innerHTML|eval\(|url\(", text), path
