"""Counters and times for Prometheus; no task's name is in them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from prompt_tuning.server.scheduler import Batch

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.requests = counter("requests_total", "Requests answered.", "endpoint", "code")
        self.cancelled = counter("cancelled_total", "Requests whose caller left.")
        self.not_finite = counter("not_finite_total", "Requests with a NaN from the device.")
        self.warnings = counter("warnings_total", "Warnings in answers.", "code")
        self.loads = counter("prompt_loads_total", "Tasks put.", "result")
        self.load_seconds = histogram("prompt_load_seconds", "Time of a PUT.", _SECONDS)
        self.queue_seconds = histogram("queue_seconds", "Time in the queue.", _SECONDS)
        self.device_seconds = histogram("device_seconds", "Time of a batch.", _SECONDS, "op")
        self.batch_rows = histogram("batch_rows", "Rows of a batch.", _ROWS)
        self.batch_tasks = histogram("batch_tasks", "Distinct tasks of a batch.", _ROWS)
        self.padding = histogram(
            "padding_ratio", "Share of a batch that is padding.", tuple(i / 10 for i in range(11))
        )

    def gauge(self, name: str, text: str, value: Callable[[], float], **labels: str) -> None:
        """Adds a value that is asked for when the metrics are read."""
        gauge = Gauge(name, text, tuple(labels), registry=self.registry)
        (gauge.labels(**labels) if labels else gauge).set_function(value)

    def on_answer(self, path: str, status: int) -> None:
        """Notes the answer of a route."""
        self.requests.labels(path, str(status)).inc()

    def on_batch(self, batch: Batch, seconds: float) -> None:
        """Notes a batch that is done."""
        rows, tokens, places = batch.shape
        real = sum(row.tokens + row.places for row in batch.rows)
        self.device_seconds.labels(getattr(batch.kind, "operation", "")).observe(seconds)
        self.batch_rows.observe(len(batch.rows))
        self.batch_tasks.observe(len({row.task for row in batch.rows}))
        self.padding.observe(max(0.0, 1 - real / (rows * (tokens + places))))

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
