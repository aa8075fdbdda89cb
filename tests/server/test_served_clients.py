"""Clients that are not ours: OpenAI's, a fuzzer of the described API, and a browser."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import httpx
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from numpy_prompts import prompt
from server_parts import LABELS, SHAPES, file_of, files, listening, started, tiny_model

from prompt_tuning import embedded, load, sharding
from prompt_tuning.server.auth import Keys, hash_of
from prompt_tuning.server.device import Device, Shapes
from prompt_tuning.server.service import Limits, Service
from prompt_tuning.server.tasks import files_of

pytestmark = pytest.mark.slow
KEYS = Keys((hash_of("user"),), (hash_of("boss"),))


@pytest.fixture(scope="module")
def address():
    device = Device(tiny_model(), SHAPES)
    with started(device, files(), keys=KEYS) as service, listening(service) as address:
        yield address


def test_openai_s_client(address):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="user", max_retries=0)
    assert {model.id for model in client.models.list()} == {"base", *LABELS}
    assert client.models.retrieve("a").id == "a"
    options = {"model": "free", "prompt": "3 4", "max_tokens": 6}
    whole = client.completions.create(**options, logprobs=2)
    streamed = list(client.completions.create(**options, stream=True))
    assert "".join(event.choices[0].text for event in streamed) == whole.choices[0].text
    assert whole.usage.prompt_tokens == 3
    as_base64 = client.embeddings.create(model="a", input="3 4").data[0].embedding
    as_floats = client.embeddings.create(model="a", input="3 4", encoding_format="float")
    np.testing.assert_allclose(as_base64, as_floats.data[0].embedding, rtol=1e-6)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gone", prompt="3")
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="free", prompt="3", suffix="x")
    assert error.value.code == "unsupported_field" and error.value.param == "suffix"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="other").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("a")


def test_a_full_queue_is_the_client_s_rate_limit_error():
    openai = pytest.importorskip("openai")
    with started(limits=Limits(queue_seconds=0.0)) as service, listening(service) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        client.embeddings.create(model="a", input=["3"] * 8)
        service.device.gate.clear()
        body = {"model": "a", "input": "3"}
        others = [
            subprocess.Popen(
                [sys.executable, "-c", "import sys, urllib.request as r; r.urlopen(r.Request("
                 "sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'}))",
                 f"{address}/v1/classify", json.dumps(body)]
            )
            for _ in range(2)
        ]  # fmt: skip
        end = time.monotonic() + 20
        while not service.engine.waiting and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(openai.RateLimitError):
            client.embeddings.create(model="a", input="3")
        service.device.gate.set()
        assert [other.wait(20) for other in others] == [0, 0]


@pytest.mark.parametrize("key", [None, "boss"])
def test_no_request_that_the_description_allows_or_forbids_breaks_the_server(
    key, address, tmp_path
):
    pytest.importorskip("schemathesis")
    statuses = [400, 401, 403, 404, 405, 412, 413, 415]
    rejected = f"[checks.negative_data_rejection]\nexpected-statuses = {statuses}\n"
    names = "" if key is None else '[parameters]\n"path.name" = "a"\n'
    (tmp_path / "schemathesis.toml").write_text(names + rejected)
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(tmp_path / "schemathesis.toml"), "run", f"{address}/openapi.json"),
        *("--checks", "all", "--max-examples", "400", "--phases", "coverage,fuzzing"),
        # What is valid by its description may name a task that does not exist.
        *("--exclude-checks", "positive_data_acceptance", "--seed", "1", "--no-color"),
        *("--exclude-path", "/v1/rows"),  # it cannot make lines of JSON; the next test does
        *(("-H", f"Authorization: Bearer {key}") if key else ()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=tmp_path)
    assert done.returncode == 0, "\n".join(line[:200] for line in done.stdout.splitlines())
    [count] = re.findall(r"(\d+) generated", done.stdout)
    assert int(count) >= 2_000


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts),
    max_leaves=8,
)
_LINES = (
    st.fixed_dictionaries({"model": st.sampled_from([*LABELS, "base"]), "input": st.text()})
    | st.fixed_dictionaries({"model": _VALUES, "input": _VALUES}, optional={"id": _VALUES})
    | _VALUES
).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)


def test_no_lines_break_the_rows(address):
    with httpx.Client(base_url=address, timeout=60) as http:

        @hypothesis.settings(max_examples=2_000, deadline=None, database=None)
        @hypothesis.given(lines=st.lists(_LINES, max_size=6), key=st.sampled_from(["", "user"]))
        def lines_are_answered(lines, key):
            content = b"\n".join(lines)
            headers = {"content-type": "application/x-ndjson"}
            headers |= {"authorization": f"Bearer {key}"} if key else {}
            answer = http.post("/v1/rows", content=content, headers=headers)
            if not key:
                assert answer.status_code == 401
                return
            rows = [line for line in content.split(b"\n") if line.strip()]
            assert answer.status_code == (200 if rows else 400), answer.text
            if rows:
                answers = [json.loads(line) for line in answer.content.splitlines()]
                assert [each["index"] for each in answers] == list(range(len(rows)))
                assert all(
                    each.get("error", {}).get("type") != "server_error" for each in answers
                ), answers

        lines_are_answered()


HOSTILE = (
    *("..", "../../x", "%2e%2e", "%2e%2e%2fx", "..%5cx", "a%00b", "gs://bucket/x", "file:///etc"),
    *("/etc/passwd", "a" * 10_000, "%d0%b0dmin", "a%0d%0aX-Y: z", "a b", "~", "%ff", "a@b"),
)


def test_hostile_names_touch_no_file(address, tmp_path):
    before = sorted(tmp_path.parent.iterdir())
    with httpx.Client(base_url=address, headers={"authorization": "Bearer boss"}) as http:
        for i in range(200):
            name = HOSTILE[i % len(HOSTILE)] + ("" if i < len(HOSTILE) else f"%{i % 256:02x}{i}")
            for method in ("PUT", "GET", "DELETE"):
                content = file_of(prompt(2)) if method == "PUT" else None
                answer = http.request(method, f"/v1/models/{name}", content=content)
                assert answer.status_code in (200, 400, 404, 405), (method, name, answer.text)
    assert sorted(tmp_path.parent.iterdir()) == before


def test_broken_messages_leave_the_server_ready(address):
    import random
    import socket

    rng, place = random.Random(0), ("127.0.0.1", int(address.rsplit(":", 1)[1]))
    whole = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30\r\n\r\n"
    for _ in range(2_000):
        message = bytearray(whole + rng.randbytes(30))
        for _ in range(rng.randint(1, 8)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        with socket.create_connection(place, timeout=5) as sock:
            sock.sendall(bytes(message[: rng.randint(1, len(message))]))
    with urllib.request.urlopen(f"{address}/ready", timeout=20) as answer:
        assert answer.status == 200


def test_the_command_serves_the_demo_and_ends_on_a_signal(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    settings = ("--gin.PORT=0", "--gin.BATCH_SIZE=4", "--gin.INPUT_LENGTH=64", "--gin.MAX_TOKENS=8")
    command = [sys.executable, "-m", "prompt_tuning.serve", *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        address = re.match(r"(http://\S+) compiles", process.stdout.readline())[1]
        with httpx.Client(base_url=address, timeout=60) as http:
            assert http.get("/ready").status_code in (200, 503)
            assert "is ready" in process.stdout.readline()
            body = {"model": "demo_topics", "input": "The striker scored twice in the final."}
            answer = http.post("/v1/classify", json=body).json()
            assert answer["data"][0]["label"] == "sport"
            words = http.get("/v1/models/demo_topics/neighbours").json()["vectors"]
            assert len(words) == 20 and len(words[0]) == 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def demo():
    """The embedded backbone with its prompts, behind a server."""
    layout = sharding.layout(devices=jax.devices()[:1])
    room = {"tasks": 8, "prompt_length": 32}
    model = load("demo", layout=layout, batch_size=8, input_length=64, **room)
    device = Device(model, Shapes((1, 8), (64,), (16,)))
    hostile = {"hostile": file_of(np.zeros((2, 256), np.float32), ["<img src=x onerror=x()>", "b"])}
    keys = Keys(is_open=True, open_updates=True)
    content = files_of(embedded.prompts()) | hostile
    with started(device, content, keys=keys) as service, listening(service) as address:
        yield service, address


@pytest.fixture
def page(demo):
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("needs /usr/bin/chromium")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: wrong.append(request.url)
                if not request.url.startswith((demo[1], "data:", "blob:")) else None)  # fmt: skip
        page.goto(demo[1])
        page.wait_for_selector("#task option:nth-child(3)", state="attached")
        yield page
        assert wrong == []
        browser.close()


def test_a_browser_asks_compares_and_shows_words(page, demo, tmp_path):
    text = "The striker scored twice in the final."
    page.select_option("#task", "demo_topics")
    page.fill("#text", text)
    page.press("#text", "Control+Enter")
    page.wait_for_selector("#theirs table")
    shown = page.eval_on_selector_all("#mine [data-p]", "all => all.map(e => +e.dataset.p)")
    compared = page.eval_on_selector_all("#theirs [data-p]", "all => all.map(e => +e.dataset.p)")
    body = {"model": "demo_topics", "input": text}
    answer = httpx.post(f"{demo[1]}/v1/classify", json=body).json()["data"][0]
    np.testing.assert_allclose(shown, answer["probs"], atol=1e-6)
    body |= {"model": "base", "labels": answer["labels"]}
    bare = httpx.post(f"{demo[1]}/v1/classify", json=body).json()["data"][0]
    np.testing.assert_allclose(compared, bare["probs"], atol=1e-6)
    assert page.text_content("#mine tr.best td") == "sport"
    page.wait_for_selector("#words tbody tr:nth-child(20)")
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))  # to look at
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=folder / f"page-{width}.png", full_page=True)
        page.screenshot(path=folder / f"top-{width}.png")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
    page.select_option("#task", "hostile")
    page.press("#text", "Control+Enter")
    page.wait_for_selector("#mine td:has-text('<img')")
    assert page.query_selector("#mine img") is None


def test_a_browser_answers_a_file_of_many_tasks(page, tmp_path):
    names = ("demo_topics", "demo_questions", "base")
    rows = [(f'What is number {i}, "exactly"?', names[i % 3], i) for i in range(300)]
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("text", "task", "id"), *rows])
    page.set_input_files("#csv", file)
    page.click("#run")
    page.wait_for_selector("#download:not([hidden])", timeout=120_000)
    with page.expect_download() as download:
        page.click("#download")
    with Path(download.value.path()).open(newline="") as answers:
        found = list(csv.DictReader(answers))
    assert [(row["text"], row["task"], int(row["id"])) for row in found] == rows
    assert not any(row["error"] for row in found)
    assert all(row["prediction"] and float(row["probability"]) > 0.1
               for row in found if row["task"] != "base")  # fmt: skip


def test_a_browser_sees_tasks_come_and_go(page, demo, tmp_path):
    file = tmp_path / "new.safetensors"
    file.write_bytes(file_of(np.zeros((2, 256), np.float32)))
    page.click("summary")
    page.fill("#name", "mine")
    page.fill("#labels", "no, yes")
    page.set_input_files("#prompt", file)
    page.click("#add button")
    page.wait_for_selector("#change-state:has-text('mine is served')")
    assert demo[0].tasks.find("mine").labels == ("no", "yes")
    httpx.delete(f"{demo[1]}/v1/models/mine")
    page.wait_for_selector("#task option[value=mine]", state="detached")


def test_the_server_of_a_damaged_store_says_so(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    from prompt_tuning.errors import CheckpointError
    from prompt_tuning.server.store import Store

    service = Service("base", Device(tiny_model(), SHAPES), {}, store=Store(tmp_path))
    with pytest.raises(CheckpointError, match="is not a manifest"):
        service.start()
