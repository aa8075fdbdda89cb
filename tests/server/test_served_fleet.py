"""Replicas behind Ray answer as one server, and share their tasks."""

import time

import httpx
import pytest
from server_parts import SHAPES, file_of, tiny_model

pytestmark = pytest.mark.slow


def make_service(folder: str):
    from prompt_tuning.server.auth import Keys
    from prompt_tuning.server.device import Device
    from prompt_tuning.server.service import Service
    from prompt_tuning.server.store import Store

    keys = Keys(is_open=True, open_updates=True)
    return Service("base", Device(tiny_model(), SHAPES), {}, store=Store(folder), keys=keys)


def test_replicas_share_tasks_and_one_may_die(tmp_path):
    ray = pytest.importorskip("ray")
    from numpy_prompts import prompt
    from ray import serve

    from prompt_tuning.server import fleet

    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": _paths()})
    try:
        folder = str(tmp_path)
        application = fleet.application(
            lambda: make_service(folder), replicas=2, ray_actor_options={"num_cpus": 0.5}
        )
        serve.start(http_options={"host": "127.0.0.1", "port": 8123})
        serve.run(application, name="tasks", route_prefix="/")
        with httpx.Client(base_url="http://127.0.0.1:8123", timeout=60) as http:
            put = http.put("/v1/models/new", content=file_of(prompt(2), ["7", "8"]))
            assert put.status_code == 201, put.text
            body = {"model": "new", "input": "3 4"}
            answers = [http.post("/v1/classify", json=body) for _ in range(20)]
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.json()["data"][0]["label"] for answer in answers}) == 1
            http.delete("/v1/models/new")
            time.sleep(3)
            gone = {http.post("/v1/classify", json=body).status_code for _ in range(10)}
            assert gone == {404}
    finally:
        serve.shutdown()
        ray.shutdown()


def _paths() -> dict[str, str]:
    import os
    from pathlib import Path

    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
