"""What the server counts, for Prometheus, in a registry of its own."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One server's counters; `text` is the answer of /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names: dict[str, Any] = {"registry": self.registry, "namespace": "augself"}
        self.requests = Counter("requests", "Requests answered", ["path", "code"], **names)
        self.seconds = Histogram(
            "request_seconds", "Time to answer", ["path"], buckets=_SECONDS, **names
        )
        self.images = Counter("images", "Images whose features were computed", ["model"], **names)
        self.batches = Histogram(
            "batch_images", "Images in one run", ["model"], buckets=_IMAGES, **names
        )
        self.waiting = Gauge("waiting_images", "Images in the queue", ["model"], **names)
        self.dropped = Counter(
            "dropped", "Requests whose client left before the run", ["model"], **names
        )
        self.ready = Gauge("ready", "1 while the model answers", ["model"], **names)
        self.model = Gauge("model_info", "Always 1", ["model", "sha256", "provider"], **names)

    def text(self) -> bytes:
        return generate_latest(self.registry)
