"""Times the HTTP server against direct calls, one task, one queue per task, and bad weather.

T5 v1.1 small with random weights and prompts, float32; the server is a process of its own, this one
is the load. Medians of turns within one run. `--smoke` has a tiny model and seconds of load.
"""

import restart

import argparse
import asyncio
import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import steps
import uvloop

from prompt_tuning import Model, sharding
from prompt_tuning.checkpoint import prompts
from prompt_tuning.methods import Method
from prompt_tuning.model.tuned import initialize
from prompt_tuning.server import run
from prompt_tuning.server.auth import Keys
from prompt_tuning.server.device import Device, Shapes
from prompt_tuning.server.scheduler import Batch, Row, Scheduler
from prompt_tuning.server.service import Limits, Service
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.t5.config import preset
from prompt_tuning.testing import Numbers, tiny_config

LABELS = ["7", "8"]
TURNS = 20  # requests of each client, so that the first and the last ones weigh little
ALL = (
    *("closed", "split", "poisson", "churn", "long_prompt"),
    *("overload", "random_settings", "two_replicas"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=64, help="and clients")
    parser.add_argument("--input", type=int, default=16, help="tokens of a text, with its end")
    parser.add_argument("--prompt", type=int, default=20)
    parser.add_argument("--new", type=int, default=8, help="tokens to make")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of an open loop")
    parser.add_argument("--requests", type=int, default=10_000, help="of random settings")
    parser.add_argument("--only", nargs="*", default=ALL, choices=ALL)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, seconds of load")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.tasks, arguments.turns, arguments.seconds, arguments.requests = 4, 1, 1.0, 40
        arguments.prompt, arguments.input = 4, 8
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        steps.report(arguments, lambda arguments: runner.run(measure(arguments)))


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in arguments.only:
        part: dict[str, float] = await PARTS[name](arguments)
        print(json.dumps(part), flush=True)
        found |= part
    return found


# The server's process.


class OneQueuePerTask(Scheduler):
    """Never mixes tasks: what Ray's batcher, Triton and BentoML do."""

    def _chosen(self, kind: Any, width: int) -> list[Row]:
        rows = super()._chosen(kind, width)
        return [row for row in rows if row.task == rows[0].task]


class FixedBatches(Scheduler):
    """Waits for a whole batch, two seconds at most."""

    _since = 0.0

    def next(self, now: float) -> tuple[Batch | None, float | None]:
        if not len(self):
            self._since = now
            return None, None
        pause = self._since + 2.0 - now
        if len(self) < self._row_shapes[-1] and pause > 0:
            return None, pause
        self._since = now
        return super().next(now)


SCHEDULERS = {"mixed": Scheduler, "split": OneQueuePerTask, "fixed": FixedBatches}


def model_of(arguments: argparse.Namespace) -> Model:
    small = dataclasses.replace(preset("t5_1_1_small"), products="float32")
    config = tiny_config() if arguments.smoke else small
    layout = sharding.layout()
    backbone = initialize(config, Method(), layout=layout).frozen
    room = PromptBank.empty(
        config.stack("encoder").width, layout.mesh, capacity=2 * arguments.tasks, length=100
    )
    return Model(
        config,
        backbone,
        Numbers(),
        layout,
        batch_size=arguments.tasks,
        input_length=max(16, arguments.input),
        prompts=room,
    )


def vectors(arguments: argparse.Namespace, number: int, length: int | None = None) -> np.ndarray:
    width = 16 if arguments.smoke else 512
    rng = np.random.default_rng(number)
    return rng.normal(size=(length or arguments.prompt, width)).astype(np.float32)


def child(arguments: argparse.Namespace, scheduler: str, pipe: Connection) -> None:
    """Runs the server in a thread, and answers what the parent asks of it."""
    model = model_of(arguments)
    shapes = Shapes.of(arguments.tasks, model.input_length, 16)
    shapes = Shapes(shapes.rows, shapes.tokens, (arguments.new, 16))
    files = {
        f"task{i}": prompts.to_bytes([vectors(arguments, i)], {"labels": json.dumps(LABELS)})
        for i in range(arguments.tasks)
    }
    service = Service(
        "base",
        Device(model, shapes),
        files,
        keys=Keys(is_open=True, open_updates=True),
        limits=Limits(seconds=120, queue_seconds=10),
        scheduler=SCHEDULERS[scheduler],
    )
    pipe.send(free_port := free())
    answering = threading.Thread(target=answer, args=(arguments, service, model, pipe), daemon=True)
    answering.start()
    run.run(service, "127.0.0.1", free_port)


def free() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def answer(arguments: argparse.Namespace, service: Service, model: Model, pipe: Connection) -> None:
    while True:
        match pipe.recv():
            case "direct":
                texts = [text(i, arguments.input) for i in range(arguments.tasks)]
                names = list(model.tasks)[1 : arguments.tasks + 1]
                model.generate(texts, names, max_tokens=arguments.new)
                start = time.perf_counter()
                model.generate(texts, names, max_tokens=arguments.new)
                pipe.send(arguments.tasks / (time.perf_counter() - start))
            case "single":
                line, name = text(0, arguments.input), model.tasks[1]
                model.generate([line], name, max_tokens=arguments.new)
                taken = []
                for _ in range(10):
                    start = time.perf_counter()
                    model.generate([line], name, max_tokens=arguments.new)
                    taken.append(time.perf_counter() - start)
                pipe.send(statistics.median(taken))
            case "compiled":
                pipe.send(service.device.compiled)
            case "missing":
                pipe.send((service.device.missing, service.device.wanted))
            case "leases":
                pipe.send(service.tasks.leases if service.tasks else 0)


@dataclasses.dataclass
class Answer:
    """What a server answered: the status, and the body."""

    status_code: int
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)


class Connections:
    """Connections that are kept open and used in turn; an HTTP client of less work than others.

    The load shares two cores with the server, so what it costs would count as the server's.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: dict[str, Any]) -> Answer:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the server closes those that were idle for long
                break
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(head.encode() + content)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        [length] = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        answer = Answer(int(first.split()[1]), await reader.readexactly(length))
        self._idle.append((reader, writer))
        return answer

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


class Served:
    """A server's process, and clients of it: `http`, and `load` for many requests."""

    def __init__(self, arguments: argparse.Namespace, scheduler: str = "mixed") -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=child, args=(arguments, scheduler, theirs))
        self.process.start()
        port = self._pipe.recv()
        self.address = f"http://127.0.0.1:{port}"
        self.http = httpx.AsyncClient(base_url=self.address, timeout=180)
        self.load = Connections(port)

    def ask(self, word: str) -> Any:
        self._pipe.send(word)
        return self._pipe.recv()

    @property
    def resident(self) -> int:
        """Bytes of the process in memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def __aenter__(self) -> "Served":
        end = time.monotonic() + 600
        while time.monotonic() < end:
            try:
                if (await self.http.get("/ready")).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
        raise TimeoutError("the server did not start")

    async def __aexit__(self, *_: object) -> None:
        self.load.close()
        await self.http.aclose()
        self.process.terminate()
        self.process.join(40)

    async def settled(self) -> None:
        """Waits until the programs that were missing are compiled."""
        while self.ask("missing")[1]:
            await asyncio.sleep(0.5)


# The load.


@functools.cache
def text(number: int, tokens: int) -> str:
    rng = np.random.default_rng([7, number])
    return " ".join(map(str, rng.integers(3, 60, tokens - 1)))


async def complete(
    served: Served, arguments: argparse.Namespace, number: int, task: int, **more: Any
) -> Answer:
    line = text(number, arguments.input)
    body = {"model": f"task{task}", "prompt": line, "max_tokens": arguments.new}
    return await served.load.post("/v1/completions", body | more)


async def closed(
    served: Served,
    arguments: argparse.Namespace,
    clients: int,
    tasks: int,
    count: int,
    **more: Any,
) -> float:
    """Requests per second of clients that each ask one after another."""

    async def client(number: int) -> None:
        for i in range(count // clients):
            asked = (number + i * clients) % tasks
            response = await complete(served, arguments, number, asked, **more)
            assert response.status_code == 200, response.text

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return count // clients * clients / (time.perf_counter() - start)


async def warm(served: Served, arguments: argparse.Namespace, **more: Any) -> None:
    """Asks with every number of clients, until every shape is compiled."""
    parts = [n * arguments.tasks // 16 for n in (2, 4, 6, 8, 12, 16)]
    for _ in range(3):
        for clients in sorted({1, 2, 3, 4, *parts} - {0}):
            await closed(served, arguments, clients, arguments.tasks, 2 * clients, **more)
        await served.settled()


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}


async def closed_loops(arguments: argparse.Namespace) -> dict[str, float]:
    clients = arguments.tasks
    turns = []
    async with Served(arguments) as served:
        await warm(served, arguments)
        for _ in range(arguments.turns):
            direct, single = served.ask("direct"), served.ask("single")
            mixed = await closed(served, arguments, clients, clients, TURNS * clients)
            one_task = await closed(served, arguments, clients, 1, TURNS * clients)
            sequential = await closed(served, arguments, 1, clients, clients)
            turn = {
                "requests_per_second": mixed,
                "clients_over_sequential": mixed / sequential,
                "server_over_direct": mixed / direct,
                "mixed_over_one_task": mixed / one_task,
                "idle_over_direct": 1 / sequential / single,
            }
            turns.append(turn)
    return medians(turns)


async def split(arguments: argparse.Namespace) -> dict[str, float]:
    clients, turns = arguments.tasks, []
    async with Served(arguments) as ours, Served(arguments, "split") as theirs:
        await warm(ours, arguments)
        await warm(theirs, arguments)
        for _ in range(arguments.turns):
            mixed = await closed(ours, arguments, clients, clients, TURNS * clients)
            alone = await closed(theirs, arguments, clients, clients, 4 * clients)
            turns.append({"mixed_over_split": mixed / alone})
    return medians(turns)


async def open_loop(
    served: Served, arguments: argparse.Namespace, rate: float, seconds: float
) -> tuple[list[float], Counter[int]]:
    """Latencies of 200s, in seconds, and statuses, of requests that come at random."""
    rng, found, statuses = np.random.default_rng(1), list[float](), Counter[int]()

    async def one(number: int) -> None:
        start = time.perf_counter()
        response = await complete(served, arguments, number, number % arguments.tasks)
        statuses[response.status_code] += 1
        if response.status_code == 200:
            found.append(time.perf_counter() - start)

    end, number = time.perf_counter() + seconds, 0
    due = time.perf_counter()
    async with asyncio.TaskGroup() as asking:  # keeps no task that is done
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asking.create_task(one(number))
            number += 1
            due += rng.exponential(1 / rate)
    return sorted(found), statuses


def quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


async def poisson(arguments: argparse.Namespace) -> dict[str, float]:
    clients = arguments.tasks
    async with Served(arguments) as ours, Served(arguments, "fixed") as fixed:
        await warm(ours, arguments)
        await closed(fixed, arguments, clients, clients, 2 * clients)
        await fixed.settled()
        capacity = await closed(ours, arguments, clients, clients, 6 * clients)
        rate = 0.7 * capacity
        for served in (ours, fixed):  # until every shape is compiled
            await open_loop(served, arguments, rate, arguments.seconds / 6)
            await served.settled()
        mine, _ = await open_loop(ours, arguments, rate, arguments.seconds / 2)
        theirs, _ = await open_loop(fixed, arguments, rate, arguments.seconds / 2)
        full_batch = clients / ours.ask("direct")
    return {
        "p50_over_fixed": quantile(mine, 0.5) / quantile(theirs, 0.5),
        "p99_over_batch": quantile(mine, 0.99) / full_batch,
    }


def same_but_for_rounding(text: str, choice: dict[str, Any]) -> bool:
    """Whether a text is a choice's, up to a token that two candidates are about as likely for."""
    so_far = ""
    for token, top in zip(
        *(choice["logprobs"][k] for k in ("tokens", "top_logprobs")), strict=True
    ):
        first, second = sorted(top.values(), reverse=True)
        so_far += token
        if not text.startswith(so_far):
            return first - second < 1e-3  # batches of other sizes round differently
    return text == choice["text"]


async def churn(arguments: argparse.Namespace) -> dict[str, float]:
    clients, count = arguments.tasks, TURNS * arguments.tasks
    async with Served(arguments) as served:
        await warm(served, arguments)
        expected = {}
        for number in range(clients):
            response = await complete(served, arguments, number, number, logprobs=2)
            expected[number] = response.json()["choices"][0]
        compiled, turns, wrong, stop = served.ask("compiled"), [], 0, False

        async def checked(number: int) -> None:
            nonlocal wrong
            for _ in range(count // clients):
                response = await complete(served, arguments, number, number)
                made = response.json()["choices"][0]["text"]
                wrong += not same_but_for_rounding(made, expected[number])

        async def changes() -> None:
            for number in range(10**9):
                if stop:
                    return
                file = prompts.to_bytes([vectors(arguments, 1000 + number)], {})
                put = await served.http.put(f"/v1/models/new{number}", content=file)
                assert put.status_code == 201, put.text
                await asyncio.sleep(0.5)
                await served.http.delete(f"/v1/models/new{number}")
                await asyncio.sleep(0.5)

        for _ in range(arguments.turns):
            rates = []
            for with_changes in (False, True):
                stop = False
                changing = asyncio.create_task(changes()) if with_changes else None
                start = time.perf_counter()
                await asyncio.gather(*(checked(number) for number in range(clients)))
                rates.append(count / (time.perf_counter() - start))
                stop = True
                if changing is not None:
                    await changing
            turns.append({"churn": rates[1] / rates[0]})
        return medians(turns) | {
            "churn_compilations": served.ask("compiled") - compiled,
            "churn_wrong": wrong,
        }


async def long_prompt(arguments: argparse.Namespace) -> dict[str, float]:
    clients, turns = arguments.tasks, []
    async with Served(arguments) as served:
        await warm(served, arguments)
        file = prompts.to_bytes([vectors(arguments, 5, 100)], {})
        for _ in range(arguments.turns):
            before = await closed(served, arguments, clients, clients, TURNS * clients)
            put = await served.http.put("/v1/models/long", content=file)
            assert put.status_code == 201, put.text
            after = await closed(served, arguments, clients, clients, TURNS * clients)
            await served.http.delete("/v1/models/long")
            turns.append({"long_prompt": after / before})
    return medians(turns)


async def overload(arguments: argparse.Namespace) -> dict[str, float]:
    clients = arguments.tasks
    async with Served(arguments) as served:
        await warm(served, arguments)
        full = TURNS * clients
        capacity = [await closed(served, arguments, clients, clients, full)]
        offered = 4 * capacity[0]
        await open_loop(served, arguments, offered, arguments.seconds / 3)  # fills the queue
        before, start = served.resident, time.perf_counter()
        latencies, statuses = await open_loop(served, arguments, offered, arguments.seconds)
        good = len(latencies) / (time.perf_counter() - start)
        grown = served.resident / before
        capacity.append(await closed(served, arguments, clients, clients, full))
        return {
            "overload_requests_per_second": good,
            "overload_goodput": good / statistics.mean(capacity),
            "overload_other_statuses": sum(statuses.values()) - statuses[200] - statuses[429],
            "overload_refused": statuses[429] / sum(statuses.values()),
            "overload_memory": grown,
            "overload_p99_seconds": quantile(latencies, 0.99),
        }


async def random_settings(arguments: argparse.Namespace) -> dict[str, float]:
    rng, clients = np.random.default_rng(3), arguments.tasks
    async with Served(arguments) as served:
        await warm(served, arguments)
        await warm(served, arguments, max_tokens=16)
        left = deque(range(arguments.requests))
        mark = arguments.requests // 10
        state: dict[str, float] = {}

        async def client() -> None:
            while left:
                number = left.popleft()
                if number == mark:
                    await served.settled()
                    state["memory"], state["compiled"] = served.resident, served.ask("compiled")
                settings = {
                    "max_tokens": int(rng.integers(1, 17)),
                    "temperature": float(rng.uniform(0, 2)),
                    "top_k": int(rng.integers(0, 50)),
                    "top_p": float(rng.uniform(0.1, 1)),
                    "seed": int(rng.integers(2**32)),
                    "logprobs": int(rng.integers(0, 6)),
                    "stop": [str(rng.integers(3, 60))],
                }
                asked = int(rng.integers(arguments.tasks))
                response = await complete(served, arguments, number, asked, **settings)
                assert response.status_code == 200, response.text

        await asyncio.gather(*(client() for _ in range(clients)))
        return {
            "random_settings_compilations": served.ask("compiled") - state["compiled"],
            "random_settings_memory": served.resident / state["memory"],
        }


async def two_replicas(arguments: argparse.Namespace) -> dict[str, float]:
    """Two servers, clients that turn to the other one when theirs is gone; one is killed."""
    clients = arguments.tasks
    async with Served(arguments) as one, Served(arguments) as two:
        for served in (one, two):
            await warm(served, arguments)
        failures, in_flight, alive = 0, Counter[str](), [one, two]

        async def client(number: int) -> None:
            nonlocal failures
            for i in range(6):
                served = alive[(number + i) % len(alive)]
                in_flight[served.address] += 1
                try:
                    await complete(served, arguments, number, number)
                except (OSError, asyncio.IncompleteReadError):
                    failures += 1
                    alive[:] = [each for each in alive if each is not served]
                finally:
                    in_flight[served.address] -= 1

        loading = [asyncio.create_task(client(number)) for number in range(clients)]
        await asyncio.sleep(min(2.0, arguments.seconds / 4))
        pending = in_flight[one.address]
        assert one.process.pid is not None
        os.kill(one.process.pid, signal.SIGKILL)
        await asyncio.gather(*loading)
        return {"two_replicas_failures": failures, "two_replicas_in_flight": pending}


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "closed": closed_loops,
    "split": split,
    "poisson": poisson,
    "churn": churn,
    "long_prompt": long_prompt,
    "overload": overload,
    "random_settings": random_settings,
    "two_replicas": two_replicas,
}


if __name__ == "__main__":
    main()
