"""The app as a Ray Serve deployment. Every replica holds every prompt, so any of them may answer.

Neither `serve.batch` nor `serve.multiplexed` is used: Ray would then split batches by model, and a
batch that mixes tasks is what a bank of prompts is for. Replicas share tasks through a store.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from ray import serve

from prompt_tuning.server.app import make_app
from prompt_tuning.server.service import Service


def application(
    make_service: Callable[[], Service], *, replicas: int = 1, batch_size: int = 64, **options: Any
) -> serve.Application:
    """An application for `serve.run`.

    Args:
      make_service: Makes a service that is not started; called in each replica.
      replicas: Number of replicas, each with a backbone of its own.
      batch_size: Most rows of a batch; twice as many requests are at a replica at a time, and as
        many again wait before Ray answers 503.
      **options: Of `serve.deployment`, such as `ray_actor_options`.
    """

    @serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=2 * batch_size,
        max_queued_requests=2 * batch_size * replicas,
        **options,
    )
    @serve.ingress()
    class Replica:
        def __init__(self) -> None:
            self.service = make_service()
            self.service.start()

        def __serve_build_asgi_app__(self) -> FastAPI:
            return make_app(self.service)

        def check_health(self) -> None:
            self.service.ready_tasks()

    deployment: Any = Replica  # what the decorators have made of it
    return deployment.bind()
