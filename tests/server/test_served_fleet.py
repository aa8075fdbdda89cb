"""Replicas behind Ray answer as one server, share their tasks, and one of them may die."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from numpy_prompts import prompt
from server_parts import SHAPES, file_of, tiny_model

from prompt_tuning.server.auth import Keys
from prompt_tuning.server.device import Device
from prompt_tuning.server.service import Service
from prompt_tuning.server.store import Store

pytestmark = pytest.mark.slow
PORT = 8123


def make_service(folder: str) -> Service:
    keys = Keys(is_open=True, open_updates=True)
    return Service("base", Device(tiny_model(), SHAPES), {}, store=Store(folder), keys=keys)


@pytest.fixture
def address(tmp_path):
    ray = pytest.importorskip("ray")
    from ray import serve

    from prompt_tuning.server import fleet

    root = Path(__file__).parents[2]
    paths = [root, root / "tests", root / "tests/server", os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "JAX_PLATFORMS": "cpu"}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": environment},
    )
    try:
        folder = str(tmp_path / "store")
        application = fleet.application(
            lambda: make_service(folder), replicas=2, ray_actor_options={"num_cpus": 0.5}
        )
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(application, name="tasks", route_prefix="/")
        yield f"http://127.0.0.1:{PORT}"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_replicas_share_tasks_and_one_may_die(address):
    body = {"model": "new", "input": "3 4"}

    def ask(http: httpx.Client) -> httpx.Response:
        return http.post("/v1/classify", json=body)

    with httpx.Client(base_url=address, timeout=60) as http:
        put = http.put("/v1/models/new", content=file_of(prompt(2), ["7", "8"]))
        assert put.status_code == 201, put.text
        answers = [ask(http) for _ in range(20)]  # at once, from both replicas
        assert {answer.status_code for answer in answers} == {200}
        [label] = {answer.json()["data"][0]["label"] for answer in answers}
        victim, *others = _replicas()
        assert others
        os.kill(victim, signal.SIGKILL)
        end, failed, fine = time.monotonic() + 60, 0, 0
        while fine < 20 and time.monotonic() < end:  # until both answer again
            answer = ask(http)
            failed += answer.status_code != 200
            fine = 0 if answer.status_code != 200 else fine + 1
            assert answer.status_code in (200, 500, 503), answer.text
        assert fine == 20 and answer.json()["data"][0]["label"] == label
        assert failed <= 2  # none but what the replica was given before its death was seen
        while len(_replicas()) < 2 and time.monotonic() < end:
            time.sleep(0.5)
        assert len(_replicas()) == 2
        http.delete("/v1/models/new")
        time.sleep(3)
        assert {ask(http).status_code for _ in range(10)} == {404}


def _replicas() -> list[int]:
    """Process numbers of the replicas, which Ray names after their deployment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::ServeReplica:"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
