"""Prefetching: a thread prepares batches ahead of the steps that use them."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(source: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """Yields the items of `source`, which a thread computes up to `depth` items ahead.

    Closing the generator stops the thread. An error in `source` is raised at the item that failed.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put((item, None))
                if stop.is_set():
                    return
            put((None, StopIteration()))
        except Exception as error:  # handed to the consumer
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
