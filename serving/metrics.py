"""What the server counts, for Prometheus, in a registry of its own.

Labels are names of ours or of models that are served, never what a client sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
_NAMES_OF_0_1 = {  # which dashboards may hold
    "augself_queue_size": "augself_waiting_images",
    "augself_decode_queue_size": "augself_decoders_waiting",
    "augself_batch_size": "augself_batch_images",
    "augself_cancelled_requests": "augself_dropped",
    "augself_model_ready": "augself_ready",
    "augself_worker_restarts": "augself_restarts",
    "augself_model_loads": "augself_loads",
    "augself_model_evictions": "augself_evictions",
}
STAGES = ("read", "fetch", "decode", "queue", "model", "encode")


class Metrics:
    """One server's counters; `text` is the answer of /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names: dict[str, Any] = {"registry": self.registry, "namespace": "augself"}
        self.requests = Counter("requests", "Requests answered", ["path", "code"], **names)
        self.seconds = Histogram(
            "request_seconds", "Time to answer", ["path"], buckets=_SECONDS, **names
        )
        self.stages = Histogram(
            "stage_seconds",
            "Time of one stage: of a request, of an image (decode, fetch), of a run (model)",
            ["stage"],
            buckets=_SECONDS,
            **names,
        )
        for stage in STAGES:
            self.stages.labels(stage)
        self.active = Gauge("active_requests", "Requests with a body, now", **names)
        self.connections = Gauge("connections", "Open connections", **names)
        self.dropped_connections = Counter(
            "dropped_connections", "Closed or refused because there were too many", **names
        )
        self.body_bytes = Gauge("body_bytes", "Bodies of requests in memory", **names)
        self.decoders = Gauge("decoders", "Threads that decode", **names)
        self.decoders_busy = Gauge("decoders_busy", "Threads that decode now", **names)
        self.decoders_stuck = Gauge("decoders_stuck", "At one image past the deadline", **names)
        self.decoded_bytes = Gauge("decoded_bytes", "Decoded images in memory", **names)
        self.decode_queue = Gauge("decode_queue_size", "Images that wait to be decoded", **names)
        self.images = Counter("images", "Images whose features were computed", ["model"], **names)
        self.batches = Histogram(
            "batch_size", "Images in one run", ["model"], buckets=_IMAGES, **names
        )
        self.queue = Gauge("queue_size", "Images in the queue", ["model"], **names)
        self.cancelled = Counter(
            "cancelled_requests",
            "Given up before the run: the client left or the deadline passed",
            ["model"],
            **names,
        )
        self.ready = Gauge("model_ready", "1 while the model answers", ["model"], **names)
        self.restarts = Counter(
            "worker_restarts", "Times a worker was started again", ["model"], **names
        )
        self.loads = Counter("model_loads", "Times a model was loaded", ["model"], **names)
        self.evictions = Counter(
            "model_evictions", "Times a model was unloaded to make room", ["model"], **names
        )
        self.memory = Gauge("model_memory_bytes", "Memory of a loaded model", ["model"], **names)
        self.model = Gauge("model_info", "Always 1", ["model", "sha256", "provider"], **names)
        self.lost_lines = Counter("access_log_lost", "Lines that were not written", **names)

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """Times what stands in the `with`; one of `STAGES`."""
        return self.stages.labels(name).time()

    def collect(self) -> Iterator[Metric]:
        """All of them; those that had other names in 0.1, under these too."""
        for metric in self.registry.collect():
            yield metric
            if (old := _NAMES_OF_0_1.get(metric.name)) is not None:
                same = Metric(old, f"The old name of {metric.name}", metric.type)
                same.samples = [
                    sample._replace(name=old + sample.name.removeprefix(metric.name))
                    for sample in metric.samples
                ]
                yield same

    def text(self) -> bytes:
        return generate_latest(self)
