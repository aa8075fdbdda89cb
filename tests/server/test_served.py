"""A real model behind the API: under a mixed load, every answer is that of its task alone."""

import asyncio

import httpx
import numpy as np
import pytest
from numpy_prompts import Alone, prompt
from server_parts import SHAPES, client, file_of, started, tiny_model

from prompt_tuning.server.auth import Keys
from prompt_tuning.server.device import Device
from prompt_tuning.testing import Numbers

# Float32 against float64, as in tests/serving/test_serving.py.
LOG_P = {"rel": 0, "abs": 2 * 4 * 2e-5}
LABELS = ("5 6", "7", "9")


def text(seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(map(str, rng.integers(3, 64, rng.integers(1, 15))))


PROMPTS = {f"task{i}": prompt(1 + i % 8, i) for i in range(63)}


@pytest.fixture(scope="module", params=[7, pytest.param(63, marks=pytest.mark.slow)])
def service(request):
    files = {f"task{i}": file_of(PROMPTS[f"task{i}"], LABELS) for i in range(request.param)}
    files["both"] = file_of([PROMPTS["task1"], PROMPTS["task2"]], LABELS)
    device = Device(tiny_model(capacity=16 if request.param == 7 else 128), SHAPES)
    keys = Keys(is_open=True, open_updates=True)
    with started(device, files, keys=keys) as service:
        yield service


def expected(name: str, line: str) -> np.ndarray:
    """Log p of the labels; of an ensemble, of their mean probability."""
    ids, targets = Numbers().encode(line), [Numbers().encode(label) for label in LABELS]
    parts = ("task1", "task2") if name == "both" else (name,)
    scores = [Alone(PROMPTS[part]).label_scores(ids, targets) for part in parts]
    return np.log(np.exp(scores).mean(axis=0))


async def post(http: httpx.AsyncClient, path: str, **body) -> dict:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_answers_under_a_mixed_load_and_while_tasks_come_and_go(service):
    compiled, capacity = service.device.compiled, _capacity(service)
    names = [task.name for task in service.tasks.all() if task.name != "base"]
    asked = [(names[i % len(names)], text(i)) for i in range(max(32, len(names)))]

    async def load() -> tuple[list, list, list]:
        async with client(service) as http:
            labels = [post(http, "/v1/classify", model=n, input=t) for n, t in asked]
            greedy = [post(http, "/v1/completions", model=n, prompt=t, max_tokens=6)
                      for n, t in asked if n != "both"]  # fmt: skip
            seeds = {"temperature": 2.0, "max_tokens": 8}
            drawn = [post(http, "/v1/completions", model=n, prompt=t, seed=i % 4, **seeds)
                     for i, (n, t) in enumerate(asked)]  # fmt: skip

            async def churn():
                for i in range(4):
                    file = file_of(prompt(3, 90 + i), LABELS)
                    assert (await http.put(f"/v1/models/new{i}", content=file)).status_code == 201
                    assert (await http.delete(f"/v1/models/new{i}")).status_code == 200

            *found, _ = await asyncio.gather(*(asyncio.gather(*x) for x in (labels, greedy, drawn)),
                                             churn())  # fmt: skip
            first = await post(http, "/v1/completions", model=asked[0][0], prompt=asked[0][1],
                               seed=0, **seeds)  # fmt: skip
            return *found, first

    labels, greedy, drawn, alone = asyncio.run(load())
    for (name, line), answer in zip(asked, labels, strict=True):
        [found] = answer["data"]
        scores = expected(name, line)
        np.testing.assert_allclose(found["logprobs"], scores, rtol=0, atol=LOG_P["abs"])
        best = scores[LABELS.index(found["label"])]
        assert name == "both" or best >= scores.max() - 2 * LOG_P["abs"]
    single = [(name, line) for name, line in asked if name != "both"]
    for (name, line), answer in zip(single, greedy, strict=True):
        tokens = Alone(PROMPTS[name]).greedy(Numbers().encode(line), 6)
        made = answer["choices"][0]["text"]
        if 0 in tokens:  # padding, which the reference does not attend to afterwards
            tokens = tokens[: tokens.index(0)]
            made = " ".join(made.split()[: len(tokens)])
        assert made == Numbers().decode(tokens)
    assert drawn[0]["choices"] == alone["choices"]  # a seed gives the same text in any batch
    assert len({each["choices"][0]["text"] for each in drawn}) > 16
    assert service.device.compiled == compiled  # nothing was compiled on the way
    assert _capacity(service) == capacity


def _capacity(service) -> int:
    return service.device.model.task_set.bank.prompts.shape[0]


def test_embeddings_and_log_p_of_tokens(service):
    async def both():
        async with client(service) as http:
            vector = await post(http, "/v1/embeddings", model="task3", input=text(1))
            body = {"model": "task3", "prompt": text(1), "max_tokens": 5, "logprobs": 3}
            return vector, await post(http, "/v1/completions", **body)

    vector, answer = asyncio.run(both())
    ids = Numbers().encode(text(1))
    np.testing.assert_allclose(
        vector["data"][0]["embedding"], Alone(PROMPTS["task3"]).embedding(ids), rtol=0, atol=2e-5
    )
    listed = answer["choices"][0]["logprobs"]
    tokens = Alone(PROMPTS["task3"]).greedy(ids, 5)
    made = [token for token in tokens if token > 1]
    total = Alone(PROMPTS["task3"]).log_p(ids, made)
    assert sum(listed["token_logprobs"]) == pytest.approx(total, rel=0, abs=2 * 6 * 2e-5)
    assert all(len(top) == 3 for top in listed["top_logprobs"])
    for chosen, top in zip(listed["token_logprobs"], listed["top_logprobs"], strict=True):
        assert max(top.values()) == pytest.approx(chosen, abs=1e-5)
